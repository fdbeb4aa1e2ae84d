"""Names become addresses here, off the connect path: a session reads what is known and never waits for a server again.

Each name in use has one task that looks it up, sleeps for the answer's time to live, and looks again. A failure keeps
the last addresses for a while (serve-stale, RFC 8767) and is retried soon. That includes NXDOMAIN, which RFC 8767 would
believe: a record deleted by mistake or a headless service between two pods should not cut off nodes that still answer;
if they are gone indeed, connecting to them fails, and says so.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import attrs
import structlog
import trio

from streamgw.core.errors import StreamgwError
from streamgw.core.model import Address

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as StubResolver

RETRY_FIRST_S = 1.0
RETRY_LIMIT_S = 30.0
"""A name that cannot be looked up is tried again after 1, 2, 4, … 30 seconds."""

LOCALHOST = ("127.0.0.1", "::1")


class LookupFailed(StreamgwError):
    """No address for a name, and why: `no such name (NXDOMAIN)`, `no answer within 5 s`."""


@attrs.frozen
class Answer:
    """What a lookup found: at least one address."""

    addresses: tuple[str, ...]
    """Literal IPs, IPv4 first, ascending: a server that rotates its records reports no change."""
    ttl_s: float
    """How long the answer may be used; 0 asks for the shortest time that is allowed."""


Lookup = Callable[[str], Awaitable[Answer]]
"""Looks one name up. Raises LookupFailed, nothing else."""


@attrs.define(eq=False)
class _Entry:
    """One name in use."""

    name: str
    addresses: tuple[str, ...] = ()
    usable_until: float = -math.inf
    """trio.current_time() when the addresses are too stale to use."""
    failures: int = 0
    """Since the last answer."""
    told: str = ""
    """The failure that was logged last; empty while all is well."""
    answered: trio.Event = attrs.Factory(trio.Event)
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class Resolver:
    """Keeps the addresses of all names that are in use."""

    def __init__(
        self,
        lookup: Lookup,
        *,
        min_ttl_s: float,
        max_ttl_s: float,
        stale_s: float,
        on_change: Callable[[str], None],
    ) -> None:
        self._lookup = lookup
        self._min_ttl_s = min_ttl_s
        self._max_ttl_s = max_ttl_s
        self._stale_s = stale_s
        self._on_change = on_change
        self._entries: dict[str, _Entry] = {}
        self._nursery: trio.Nursery | None = None
        self._log = structlog.get_logger()

    def sync(self, names: Collection[str]) -> None:
        """Keep exactly these names fresh from now on. Literal IPs among them are left alone.

        A name that stays is not asked for again. Before `run`, names are only noted.
        """
        wanted = {name for name in names if not _is_literal(name)}
        for name in self._entries.keys() - wanted:
            entry = self._entries.pop(name)
            entry.scope.cancel()
            # Nobody will answer any more: a session that waits for this name goes on with what there is.
            entry.answered.set()
        for name in sorted(wanted - self._entries.keys()):
            self._entries[name] = entry = _Entry(name)
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, entry, name=f"resolve {name}")

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known now, without waiting: () if nothing is; a literal IP is its own address."""
        entry = self._entries.get(name)
        if entry is not None:
            return entry.addresses
        return (name,) if _is_literal(name) else ()

    async def first(self, name: str) -> None:
        """Wait until the first lookup of a name has ended, well or not. Returns at once for a name not in use."""
        entry = self._entries.get(name)
        if entry is not None:
            await entry.answered.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep looking. `on_change(name)` is called when a name's set of addresses is another one, and only then.

        Cancellation:
          Every lookup under way ends with it. What is known stays readable.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for entry in self._entries.values():
                    nursery.start_soon(self._keep, entry, name=f"resolve {entry.name}")
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
        raise AssertionError("sleep_forever returned")

    async def _keep(self, entry: _Entry) -> None:
        with entry.scope:
            while True:
                try:
                    answer = await self._lookup(entry.name)
                except LookupFailed as error:
                    delay_s = self._failed(entry, str(error))
                else:
                    delay_s = self._succeeded(entry, answer)
                entry.answered.set()
                await trio.sleep(delay_s)

    def _succeeded(self, entry: _Entry, answer: Answer) -> float:
        ttl_s = min(max(answer.ttl_s, self._min_ttl_s), self._max_ttl_s)
        entry.usable_until = trio.current_time() + ttl_s + self._stale_s
        entry.failures = 0
        if entry.told:
            entry.told = ""
            self._log.info("name_resolves_again", name=entry.name, addresses=answer.addresses)
        self._set(entry, answer.addresses)
        return ttl_s

    def _failed(self, entry: _Entry, why: str) -> float:
        """Returns the seconds until the next try."""
        left_s = entry.usable_until - trio.current_time()
        if left_s <= 0:
            self._set(entry, ())
        if why != entry.told:
            entry.told = why
            self._log.warning("name_not_resolved", name=entry.name, why=why, still_used=entry.addresses)
        delay_s = min(RETRY_FIRST_S * 2.0 ** min(entry.failures, 10), RETRY_LIMIT_S)
        entry.failures += 1
        # Not later than the moment at which what we serve becomes too old, so that it is dropped then.
        return min(delay_s, left_s) if entry.addresses else delay_s

    def _set(self, entry: _Entry, addresses: tuple[str, ...]) -> None:
        if addresses != entry.addresses:
            entry.addresses = addresses
            self._on_change(entry.name)


class DNSLookup:
    """Looks a name up as the machine would: /etc/hosts, then the servers. All A and AAAA records count.

    Both files are read again when they change. The hosts file is small and local, so it is read on the event loop.

    Args:
      servers: instead of those in /etc/resolv.conf; its search domains are still used.
      timeout_s: for one lookup in all, every server and search domain included.
      search: a name without enough dots (`ndots`) goes through the search domains.
      ttl_override_s: instead of the records' own time to live (`apisix.dns_resolver_valid`). The resolver's bounds
        still hold.
    """

    def __init__(
        self,
        *,
        servers: Sequence[Address] = (),
        timeout_s: float = 5.0,
        search: bool = True,
        ttl_override_s: float | None = None,
        etc: Path = Path("/etc"),
    ) -> None:
        self._servers = tuple(servers)
        self._timeout_s = timeout_s
        self._search = search
        self._ttl_override_s = ttl_override_s
        self._hosts_file = etc / "hosts"
        self._resolv_conf = etc / "resolv.conf"
        self._hosts_stamp: int | None = None
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._stub_stamp: int | None = None
        self._stub: StubResolver | None = None

    async def __call__(self, name: str) -> Answer:
        """Look up one name.

        Raises:
          LookupFailed: neither the hosts file nor a server knows an address.

        Cancellation:
          The queries' sockets are closed.
        """
        if listed := self._listed(name.lower().removesuffix(".")):
            await trio.lowlevel.checkpoint()
            return Answer(listed, 0.0)
        if self._stub is None:
            # In a thread, because importing takes long and the first name may well arrive with a reload, among sessions.
            await trio.to_thread.run_sync(_import_dnspython)
        found: list[Answer] = []
        failures: list[str] = []
        async with trio.open_nursery() as nursery:
            for kind in ("A", "AAAA"):
                nursery.start_soon(self._ask, name, kind, found, failures)
        if not found:
            raise LookupFailed(failures[0] if failures else "has neither an A nor an AAAA record")
        ttl_s = (
            min(answer.ttl_s for answer in found) if self._ttl_override_s is None else self._ttl_override_s
        )
        return Answer(_ordered(address for answer in found for address in answer.addresses), ttl_s)

    async def _ask(
        self, name: str, kind: Literal["A", "AAAA"], found: list[Answer], failures: list[str]
    ) -> None:
        """One family. Its failure matters only if the other one has no address either: many servers break on AAAA."""
        import dns.exception  # noqa: PLC0415  see _import_dnspython
        import dns.resolver  # noqa: PLC0415  see _import_dnspython

        try:
            answer = await self._configured_stub().resolve(
                name, kind, search=self._search, raise_on_no_answer=False, lifetime=self._timeout_s
            )
        except dns.resolver.NXDOMAIN:
            failures.append("no such name (NXDOMAIN)")
        except dns.exception.Timeout:
            failures.append(f"no answer within {self._timeout_s:g} s")
        except dns.resolver.NoNameservers as error:
            # (server, over TCP?, port, what it said or which error it was, the whole response)
            said = {f"{server} answered {verdict}" for server, _, _, verdict, _ in error.kwargs["errors"]}
            failures.append("; ".join(sorted(said)).replace("Do53:", ""))
        except (dns.exception.DNSException, OSError) as error:
            failures.append(str(error) or type(error).__name__)
        else:
            if answer.rrset:
                # The whole chain of CNAMEs counts, not only the last record.
                found.append(
                    Answer(
                        tuple(record.address for record in answer.rrset), answer.chaining_result.minimum_ttl
                    )
                )

    def _configured_stub(self) -> StubResolver:
        stamp = _stamp(self._resolv_conf)
        if self._stub is None or stamp != self._stub_stamp:
            self._stub, self._stub_stamp = self._build_stub(), stamp
        return self._stub

    def _build_stub(self) -> StubResolver:
        import dns.asyncresolver  # noqa: PLC0415  see _import_dnspython
        import dns.nameserver  # noqa: PLC0415  see _import_dnspython
        import dns.resolver  # noqa: PLC0415  see _import_dnspython

        stub = dns.asyncresolver.Resolver(configure=False)
        try:
            stub.read_resolv_conf(str(self._resolv_conf))
        except dns.resolver.NoResolverConfiguration:
            # Raised for a missing file and for one without servers; only our own servers can help then.
            if not self._servers:
                raise
        if self._servers:
            stub.nameservers = [
                dns.nameserver.Do53Nameserver(server.host, server.port) for server in self._servers
            ]
        return stub

    def _listed(self, name: str) -> tuple[str, ...]:
        stamp = _stamp(self._hosts_file)
        if stamp != self._hosts_stamp:
            self._hosts, self._hosts_stamp = _read_hosts(self._hosts_file), stamp
        if name == "localhost" or name.endswith(".localhost"):
            return self._hosts.get(name) or LOCALHOST  # RFC 6761 § 6.3: never ask a server for it
        return self._hosts.get(name, ())


def _import_dnspython() -> None:
    import dns.asyncbackend  # noqa: PLC0415  106 ms: only a gateway with names pays for it
    import dns.asyncresolver  # noqa: PLC0415  as above

    dns.asyncbackend.get_backend("trio")


def _read_hosts(path: Path) -> dict[str, tuple[str, ...]]:
    """Names (lower case) to addresses. A line that cannot be read is skipped, as libc does (hosts(5))."""
    found: dict[str, set[str]] = {}
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if _is_literal(address):
            for name in names:
                found.setdefault(name.lower(), set()).add(address)
    return {name: _ordered(addresses) for name, addresses in found.items()}


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _ordered(addresses: Iterable[str]) -> tuple[str, ...]:
    parsed = {ipaddress.ip_address(address) for address in addresses}
    return tuple(map(str, sorted(parsed, key=lambda address: (address.version, int(address)))))


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
