"""Services become nodes: `_mysql._tcp.db.example` by its SRV records, `db.example:3306` by those or by its addresses.

An answer replaces the one before it as a whole: a service whose targets are all exchanged is never without nodes in between.
The addresses of targets are always asked for. A server may send some along (RFC 2782, the additional section), but only
those that it happens to have at hand, so that nodes would come and go with its cache.

Source:
  RFC 2782; APISIX `apisix/discovery/dns/init.lua`: a port in the service's name wins over the records'.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NoReturn, TypeAlias

import attrs
import structlog
import trio

from streamgw.core.discovery import (
    ORDER,
    Discovered,
    RecordKind,
    ServiceRecord,
    nodes_at,
    nodes_of,
    split_service_name,
)
from streamgw.dataplane.refresher import Answer, LookupFailed, Refresher
from streamgw.dataplane.resolver import BOTH, DNSLookup, NotThere, Resolver

MAX_QUERIES: Final = 16
"""For targets of one service, under way at a time; each may be one for each family."""
RETRY_TARGETS_S: Final = 5.0
"""A service is asked for again this soon while an address of a target is missing."""

_Place: TypeAlias = tuple[ServiceRecord, Sequence[str]]
"""A record, and the addresses of its target."""


class Discovery(Refresher[Discovered]):
    """Keeps the nodes of all services that are in use.

    Args:
      lookup: asks. Its memory of services that are not in use is taken away.
      limits: `min_ttl_s`, `max_ttl_s`, `stale_s`: see `Refresher`.
      on_change: told of each service whose nodes are others.
    """

    def __init__(
        self,
        lookup: ServiceLookup,
        *,
        min_ttl_s: float,
        max_ttl_s: float,
        on_change: Callable[[str], None],
    ) -> None:
        super().__init__(
            lookup, min_ttl_s=min_ttl_s, max_ttl_s=max_ttl_s, stale_s=lookup.stale_s, on_change=on_change
        )
        self._services = lookup

    def sync(self, names: Collection[str]) -> None:
        """See `Refresher.sync`."""
        super().sync(names)
        self._services.keep(names)


@attrs.frozen
class _Memory:
    """What the latest answer for a service was made of."""

    addresses: dict[str, tuple[tuple[str, ...], float]]
    """Of targets, and until when they may be used (trio.current_time())."""
    missed: frozenset[str]
    """Targets whose addresses could not be had, which was told."""


class ServiceLookup:
    """Looks one service up.

    Args:
      dns: asks the servers.
      order: SRV before A and AAAA, or behind them; a kind that is not in it is not asked for. `last` means nothing: what
        is asked depends on no answer before. CNAMEs are followed whatever it says; alone it stands for both families.
      stale_s: how long addresses of a target are used while they cannot be had, beyond their own time.
    """

    def __init__(self, dns: DNSLookup, *, order: Sequence[RecordKind] = ORDER, stale_s: float) -> None:
        self._dns = dns
        self.stale_s = stale_s
        wanted = [kind for kind in order if kind != "last"]
        self._families = tuple(kind for kind in BOTH if kind in wanted) or BOTH
        self._ways = tuple(dict.fromkeys(kind == "SRV" for kind in wanted))
        """By SRV records: True; by addresses: False. First what is tried first."""
        self._memories: dict[str, _Memory] = {}
        self._log = structlog.get_logger()

    def keep(self, service_names: Collection[str]) -> None:
        """Forget all other services."""
        self._memories = {name: self._memories[name] for name in self._memories.keys() & set(service_names)}

    async def __call__(self, service_name: str) -> Answer[Discovered]:
        """Look up one service: `name` or `name:port`.

        Raises:
          LookupFailed: no server knows a node.

        Cancellation:
          The queries' sockets are closed.
        """
        name, port = split_service_name(service_name)
        failures: list[str] = []
        for by_records in self._ways:
            if not by_records and not port:
                continue  # addresses alone are of no use
            try:
                if by_records:
                    return await self._by_records(service_name, name, port)
                return await self._by_address(service_name, name, port)
            except NotThere as error:
                failures.append(str(error))
            except LookupFailed as error:
                # There were records a moment ago. The addresses of the name itself may be somebody else's.
                if by_records and service_name in self._memories:
                    raise
                failures.append(str(error))
        raise LookupFailed("; ".join(dict.fromkeys(failures)) or "service_name has no port")

    async def _by_address(self, service_name: str, name: str, port: int) -> Answer[Discovered]:
        answer = await self._dns(name, self._families)
        self._memories.pop(service_name, None)
        return Answer(nodes_at(name, answer.found, port), answer.ttl_s, answer.left_out)

    async def _by_records(self, service_name: str, name: str, port: int) -> Answer[Discovered]:
        response = await self._dns.ask(name, "SRV")
        if not response.rrset:
            raise NotThere("has no SRV record" if port else "has no SRV record, and service_name no port")
        records = sorted(
            {
                ServiceRecord(
                    record.priority,
                    record.target.to_text().lower().removesuffix("."),
                    record.port,
                    record.weight,
                )
                for record in response.rrset
            }
        )
        ttl_s = self._dns.ttl_s(response)
        if not any(record.target for record in records):
            self._memories[service_name] = _Memory({}, frozenset())
            return Answer((), ttl_s)
        usable = [record for record in records if record.target and (port or record.port)]
        if not usable:
            raise NotThere("no SRV record has a port")
        used = usable[: self._dns.max_records]
        answers, failures = await self._look_up({record.target for record in used})
        addresses = self._remember(service_name, answers, failures)
        places = [(record, addresses.get(record.target, ())) for record in used]
        kept = _first(places, self._dns.max_records)
        left_out = len(usable) - len(used) + _count(places) - _count(kept)
        soonest_s = min([ttl_s, *(answer.ttl_s for answer in answers.values())])
        ttl_s = min(soonest_s, RETRY_TARGETS_S) if failures else soonest_s
        return Answer(nodes_of(kept, port), ttl_s, left_out)

    async def _look_up(self, targets: Iterable[str]) -> tuple[dict[str, Answer[str]], dict[str, str]]:
        """The addresses of each target, or why there are none. Takes as long as a lookup may."""
        answers: dict[str, Answer[str]] = {}
        failures = dict.fromkeys(targets, f"no answer within {self._dns.timeout_s:g} s")
        limiter = trio.CapacityLimiter(MAX_QUERIES)

        async def look_up(target: str) -> None:
            async with limiter:
                try:
                    answers[target] = await self._dns(f"{target}.", self._families)
                except LookupFailed as error:
                    failures[target] = str(error)
                else:
                    del failures[target]

        with trio.move_on_after(self._dns.timeout_s):
            async with trio.open_nursery() as nursery:
                for target in sorted(failures):
                    nursery.start_soon(look_up, target)
        if not answers:
            raise LookupFailed("; ".join(sorted({f"{name}: {why}" for name, why in failures.items()})[:3]))
        return answers, failures

    def _remember(
        self, service_name: str, answers: dict[str, Answer[str]], failures: dict[str, str]
    ) -> dict[str, tuple[str, ...]]:
        """The addresses to use: those of now, and for targets in trouble those of before."""
        now = trio.current_time()
        before = self._memories.get(service_name, _Memory({}, frozenset()))
        kept = {
            target: known
            for target, known in before.addresses.items()
            if target in failures and now < known[1]
        }
        kept |= {
            target: (answer.found, now + answer.ttl_s + self.stale_s) for target, answer in answers.items()
        }
        self._memories[service_name] = _Memory(kept, frozenset(failures))
        for target in sorted(failures.keys() - before.missed):
            still_used = kept[target][0] if target in kept else ()
            self._log.warning(
                "target_not_resolved",
                name=service_name,
                target=target,
                why=failures[target],
                still_used=still_used,
            )
        return {target: addresses for target, (addresses, _) in kept.items()}


def _first(places: Iterable[_Place], most: int) -> list[_Place]:
    """So many addresses, before anything is computed of them: 1,024 records of 1,024 addresses each would take a minute."""
    kept: list[_Place] = []
    for record, addresses in places:
        kept.append((record, addresses[:most]))
        most -= len(kept[-1][1])
    return kept


def _count(places: Iterable[_Place]) -> int:
    return sum(len(addresses) for _, addresses in places)


class Naming:
    """Everything that is asked of DNS for upstreams: the names of their nodes, and services. Implements `pool.Names`.

    Args:
      on_bug: an exception that nobody expected of a look-up. Left out, it is logged.
    """

    def __init__(
        self,
        resolver: Resolver,
        discovery: Discovery,
        *,
        on_bug: Callable[[Exception], None] | None = None,
    ) -> None:
        self.resolver = resolver
        self.discovery = discovery
        if on_bug is not None:
            resolver.on_bug = discovery.on_bug = on_bug

    def sync(self, names: Collection[str], services: Collection[str]) -> None:
        """Keep exactly these names and services fresh from now on."""
        self.resolver.sync(names)
        self.discovery.sync(services)

    def addresses(self, name: str) -> tuple[str, ...]:
        """See `Resolver.addresses`."""
        return self.resolver.addresses(name)

    def nodes(self, service_name: str) -> tuple[Discovered, ...]:
        """What is known of a service."""
        return self.discovery.known(service_name)

    def trouble(self, service_name: str) -> str:
        """Why the latest lookup of a service failed; empty: it did not."""
        return self.discovery.trouble(service_name)

    async def first(self, name: str) -> None:
        """Wait until the first lookup of a name or a service has ended, well or not."""
        await self.resolver.first(name)
        await self.discovery.first(name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep looking, see `Refresher.run`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.resolver.run)
            await nursery.start(self.discovery.run)
            task_status.started()
        raise AssertionError("nobody ends them")
