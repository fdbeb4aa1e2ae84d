"""Names become addresses here, as the machine would do it: /etc/hosts, then its name servers or the operator's."""

from __future__ import annotations

import io
import ipaddress
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import trio

from streamgw.core.model import Address
from streamgw.dataplane.refresher import Answer, LookupFailed, Refresher

if TYPE_CHECKING:
    import dns.resolver
    from dns.asyncresolver import Resolver as StubResolver

Kind: TypeAlias = Literal["A", "AAAA"]
BOTH: Final[tuple[Kind, ...]] = ("A", "AAAA")
LOCALHOST = ("127.0.0.1", "::1")
MAX_RECORDS: Final = 256
"""Of one kind and one name that are used."""
TIMEOUT_OPTION_S: Final = (1, 30)
"""The bounds of `options timeout:` (resolv.conf(5))."""

_Stamp: TypeAlias = tuple[int, int, int]


class NotThere(LookupFailed):
    """The servers are well, and say that there is no such name or none of the records."""


class Resolver(Refresher[str]):
    """Keeps the addresses of all names that are in use."""

    def sync(self, names: Collection[str]) -> None:
        """See `Refresher.sync`. Literal IPs among the names are left alone."""
        super().sync({name for name in names if not _is_literal(name)})

    def addresses(self, name: str) -> tuple[str, ...]:
        """What is known now, without waiting: () if nothing is; a literal IP is its own address."""
        return self.known(name) or ((name,) if _is_literal(name) else ())


class DNSLookup:
    """Looks a name up as the machine would: /etc/hosts, then the servers. All A and AAAA records count.

    Both files are read again when they change. They are small and local, so they are read on the event loop. A resolv.conf
    that is wrong is a failure that names it, at each look until it is mended.

    Args:
      servers: instead of those in /etc/resolv.conf, which may be missing then; its search domains are still used.
      resolv_conf: in place of /etc/resolv.conf.
      timeout_s: for one lookup in all, every server and search domain included.
      search: a name without enough dots (`ndots`) goes through the search domains.
      ttl_override_s: instead of the records' own time to live (`apisix.dns_resolver_valid`). The resolver's bounds
        still hold.
      max_records: of one name that are used, the first in the order of `Answer.found`.
    """

    def __init__(  # noqa: PLR0913  one per setting
        self,
        *,
        servers: Sequence[Address] = (),
        timeout_s: float = 5.0,
        search: bool = True,
        ttl_override_s: float | None = None,
        max_records: int = MAX_RECORDS,
        etc: Path = Path("/etc"),
        resolv_conf: Path | None = None,
    ) -> None:
        self._servers = tuple(servers)
        self.timeout_s = timeout_s
        self.max_records = max_records
        self._search = search
        self._ttl_override_s = ttl_override_s
        self._hosts_file = etc / "hosts"
        self._resolv_conf = resolv_conf or etc / "resolv.conf"
        self._hosts_stamp: _Stamp | None = None
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._stub_stamp: _Stamp | None = None
        self._stub: StubResolver | None = None
        self._has_imported = False

    async def __call__(self, name: str, kinds: Sequence[Kind] = BOTH) -> Answer[str]:
        """Look up the addresses of one name: literal IPs, IPv4 first, ascending.

        Args:
          name: absolute if it ends with a dot.
          kinds: the families that are wanted.

        Raises:
          LookupFailed: neither the hosts file nor a server knows an address.

        Cancellation:
          The queries' sockets are closed.
        """
        if listed := self._listed(name.lower().removesuffix(".")):
            await trio.lowlevel.checkpoint()
            return self._bounded([each for each in listed if _kind(each) in kinds], 0.0)
        found: list[dns.resolver.Answer] = []
        failures: list[LookupFailed] = []

        async def ask(kind: Kind) -> None:
            # A failure matters only if the other family has no address either: many servers break on AAAA.
            try:
                answer = await self.ask(name, kind)
            except LookupFailed as error:
                failures.append(error)
            else:
                if answer.rrset:
                    found.append(answer)

        async with trio.open_nursery() as nursery:
            for kind in kinds:
                nursery.start_soon(ask, kind)
        if not found:
            # Trouble first: a server that does not answer might have known.
            failures.sort(key=lambda error: isinstance(error, NotThere))
            words = "neither an A nor an AAAA record" if len(kinds) == len(BOTH) else f"no {kinds[0]} record"
            raise failures[0] if failures else NotThere(f"has {words}")
        addresses = (record.address for answer in found for record in answer)
        return self._bounded(_ordered(addresses), min(map(self.ttl_s, found)))

    async def ask(self, name: str, kind: Kind | Literal["SRV"]) -> dns.resolver.Answer:
        """Ask the servers for records of one kind. `rrset` is None if the name has none of it.

        Raises:
          NotThere: there is no such name.
          LookupFailed: nobody knows.

        Cancellation:
          The query's socket is closed.
        """
        if not self._has_imported:
            # In a thread, because importing takes long and the first name may well arrive with a reload, among sessions.
            await trio.to_thread.run_sync(_import_dnspython)
            self._has_imported = True
        import dns.exception  # noqa: PLC0415  see _import_dnspython
        import dns.resolver  # noqa: PLC0415  see _import_dnspython

        try:
            return await self._configured_stub().resolve(
                name, kind, search=self._search, raise_on_no_answer=False, lifetime=self.timeout_s
            )
        except dns.resolver.NXDOMAIN:
            raise NotThere("no such name (NXDOMAIN)") from None
        except dns.exception.Timeout:
            raise LookupFailed(f"no answer within {self.timeout_s:g} s") from None
        except dns.resolver.NoNameservers as error:
            # (server, over TCP?, port, what it said or which error it was, the whole response)
            said = {f"{server} answered {verdict}" for server, _, _, verdict, _ in error.kwargs["errors"]}
            raise LookupFailed("; ".join(sorted(said)).replace("Do53:", "")) from None
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(str(error) or type(error).__name__) from None

    def ttl_s(self, answer: dns.resolver.Answer) -> float:
        """How long an answer may be used."""
        if self._ttl_override_s is not None:
            return self._ttl_override_s
        # The whole chain of CNAMEs counts, not only the last record.
        return float(answer.chaining_result.minimum_ttl)

    def _bounded(self, addresses: Sequence[str], ttl_s: float) -> Answer[str]:
        used = tuple(addresses[: self.max_records])
        return Answer(used, ttl_s, len(addresses) - len(used))

    def _configured_stub(self) -> StubResolver:
        stamp = _stamp(self._resolv_conf)
        if self._stub is None or stamp != self._stub_stamp:
            self._stub, self._stub_stamp = self._build_stub(), stamp
        return self._stub

    def _build_stub(self) -> StubResolver:
        import dns.asyncresolver  # noqa: PLC0415  see _import_dnspython
        import dns.exception  # noqa: PLC0415  see _import_dnspython
        import dns.nameserver  # noqa: PLC0415  see _import_dnspython

        stub = dns.asyncresolver.Resolver(configure=False)
        stub.nameservers = [
            dns.nameserver.Do53Nameserver(server.host, server.port) for server in self._servers
        ]
        try:
            text = self._resolv_conf.read_text("utf-8", "replace")
        except OSError as error:
            # Only our own servers can help.
            if self._servers:
                return stub
            raise LookupFailed(f"{self._resolv_conf}: {error.strerror}") from None
        try:
            _configure(stub, text)
        except (ValueError, dns.exception.DNSException) as error:
            raise LookupFailed(f"{self._resolv_conf}: {error}") from None
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


def _configure(stub: StubResolver, text: str) -> None:
    """Apply a resolv.conf. Its servers count, and must be right, only if the stub has none.

    Raises:
      ValueError, DNSException: what is wrong, for people.
    """
    import dns.inet  # noqa: PLC0415  see _import_dnspython
    import dns.resolver  # noqa: PLC0415  see _import_dnspython

    own = stub.nameservers
    lines = [line.split() for line in io.StringIO(text)]
    for server in [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]:
        if not own and not dns.inet.is_address(server):
            raise ValueError(f"nameserver {server[:64]!r} is not an IP address")
    try:
        stub.read_resolv_conf(io.StringIO(text))
    except (ValueError, dns.resolver.NoResolverConfiguration):
        # Its servers, which are looked at last: one is wrong, or there is none.
        if not own:
            raise
    stub.nameservers = own or stub.nameservers
    least_s, most_s = TIMEOUT_OPTION_S
    stub.timeout = min(max(stub.timeout, least_s), most_s)


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


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _ordered(addresses: Iterable[str]) -> tuple[str, ...]:
    parsed = {ipaddress.ip_address(address) for address in addresses}
    return tuple(map(str, sorted(parsed, key=lambda address: (address.version, int(address)))))


def _kind(address: str) -> Kind:
    return "AAAA" if ":" in address else "A"


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
