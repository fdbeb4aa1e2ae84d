"""The numbers behind the metrics: what each worker counts by itself, and the sum of it with what a gateway has once.

No total ever goes back. What a worker has counted is kept when it ends: of one that was killed, as it was looked at last.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import attrs
import trio

from streamgw.control.admin.fleet import (
    CertificateFigures,
    Ended,
    Figures,
    ListenerFigures,
    NodeFigures,
    ReloadFigures,
    ServiceFigures,
    Spread,
)
from streamgw.control.reloader import ReloadStatus
from streamgw.core.tally import CONNECT_BOUNDS_S, DURATION_BOUNDS_S, MAX_CELLS, Cell, Histogram
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.central import Central
from streamgw.process.prober import Checker
from streamgw.process.stderr import STDERR
from streamgw.process.worker import Worker

BATCH = 500
"""Sessions or counts looked at before others get a turn: a fraction of a millisecond."""
LOST = "lost"
"""Why sessions ended whose worker was killed: nobody was left to say more."""

_STARTED_AT: Callable[[Session | UDPSession], float] = operator.attrgetter("started_at")


@attrs.frozen(kw_only=True)
class Share:
    """What one worker has counted, since its start, and what lives there now. Also the sum of several."""

    listeners: Sequence[ListenerFigures] = ()
    ended: Sequence[Ended] = ()
    connect: Spread = attrs.Factory(lambda: _spread(Histogram(CONNECT_BOUNDS_S)))
    duration: Spread = attrs.Factory(lambda: _spread(Histogram(DURATION_BOUNDS_S)))
    connections: Mapping[str, int] = attrs.Factory(dict)
    drops: Sequence[tuple[str, str, int]] = ()
    """Listener, reason, datagrams."""
    bugs: int = 0
    log_dropped: int = 0
    """Lines of the application log, which its process has lost."""
    access_log_dropped: int = 0
    records_dropped: Mapping[str, int] = attrs.Factory(dict)
    events_lost: int = 0


def batches(worker: Worker) -> Iterator[Sequence[Session | UDPSession]]:
    """Every session that lives now, oldest first, BATCH at a time. What ends meanwhile is among them."""
    everyone: list[Session | UDPSession] = [*worker.sessions.live.values(), *worker.udp.live.values()]
    everyone.sort(key=_STARTED_AT)  # two runs in order already: one merge
    for start in range(0, len(everyone), BATCH):
        yield everyone[start : start + BATCH]


async def take_share(worker: Worker) -> Share:
    """What has ended by now, and what lives now; no session counts twice, and no total ever goes back.

    Lets others run while it counts.
    """
    cells, connect, duration = (
        worker.tally.cells(),
        _spread(worker.tally.connect),
        _spread(worker.tally.duration),
    )
    accepted = Counter(worker.sessions.totals.accepted)
    active = worker.sessions.live_by_listener + worker.udp.live_by_listener
    bytes_up, bytes_down = defaultdict[str, int](int), defaultdict[str, int](int)
    for batch in batches(worker):  # before the first await: all of one moment
        for session in batch:
            name = session.listener.name
            bytes_up[name] += session.meter.bytes_up
            bytes_down[name] += session.meter.bytes_down
        await trio.lowlevel.checkpoint()
    ended: list[Ended] = []
    for start in range(0, len(cells), BATCH):
        ended += map(_ended, cells[start : start + BATCH])
        await trio.lowlevel.checkpoint()
    return Share(
        listeners=[
            ListenerFigures(
                name,
                active[name],
                bytes_up[name],
                bytes_down[name],
                accepted[name],
                worker.listeners.pauses[name],
            )
            for name in dict.fromkeys(chain(worker.listeners.states(), accepted))
        ],
        ended=ended,
        connect=connect,
        duration=duration,
        connections=dict(worker.services.connections),
        drops=[*_drops(worker)],
        bugs=worker.bugs,
        log_dropped=STDERR.dropped,
        access_log_dropped=worker.access_log.dropped,
        records_dropped=dict(worker.shipper.dropped),
    )


def add_up(shares: Sequence[Share]) -> Share:
    """The sum. Of several it takes a microsecond for each way to end: not for a process that serves clients."""
    if len(shares) == 1:
        return shares[0]
    cells: dict[tuple[str, str, int, str], Ended] = {}
    for each in chain.from_iterable(share.ended for share in shares):
        _take_in(cells, each)
    drops = Counter[tuple[str, str]]()
    for share in shares:
        drops.update({(listener, reason): count for listener, reason, count in share.drops})
    return Share(
        listeners=_listeners(shares),
        ended=[*cells.values()],
        connect=_both([share.connect for share in shares]),
        duration=_both([share.duration for share in shares]),
        connections=_counts(share.connections for share in shares),
        drops=[(listener, reason, count) for (listener, reason), count in drops.items()],
        bugs=sum(share.bugs for share in shares),
        log_dropped=sum(share.log_dropped for share in shares),
        access_log_dropped=sum(share.access_log_dropped for share in shares),
        records_dropped=_counts(share.records_dropped for share in shares),
    )


def left_behind(share: Share) -> Share:
    """What stays of a worker that is gone: sessions that it had have ended with it.

    Bounded: of more than MAX_CELLS ways to end, which node it was is forgotten.
    """
    lost = [
        Ended(each.name, LOST, 0, "", each.active, each.bytes_up, each.bytes_down)
        for each in share.listeners
        if each.active or each.bytes_up or each.bytes_down
    ]
    cells: dict[tuple[str, str, int, str], Ended] = {}
    has_too_many = len(share.ended) + len(lost) > MAX_CELLS
    for each in chain(share.ended, lost):
        _take_in(cells, attrs.evolve(each, node="") if has_too_many else each)
    listeners = [attrs.evolve(each, active=0, bytes_up=0, bytes_down=0) for each in share.listeners]
    return attrs.evolve(share, listeners=listeners, ended=[*cells.values()])


def of_gateway(share: Share, central: Central, settings: ReloadStatus) -> Figures:
    """What the metrics show: the workers' sum, and what there is once."""
    snapshot = central.reloader.current
    certificates = {each.id: each.not_after_s for each in snapshot.certificates.values()}
    return Figures(
        revision=snapshot.revision,
        objects=Counter(collection for collection, _ in snapshot.sources),
        reloads=(_reload("routes", central.reloader.status), _reload("settings", settings)),
        listeners=share.listeners,
        ended=share.ended,
        connect=share.connect,
        duration=share.duration,
        connections=share.connections,
        drops={(listener, reason): count for listener, reason, count in share.drops},
        certificates=[CertificateFigures(id_, not_after) for id_, not_after in certificates.items()],
        bugs=share.bugs,
        log_dropped=share.log_dropped,
        access_log_dropped=share.access_log_dropped,
        records_dropped=share.records_dropped,
        event_clients=len(central.hub),
        events_lost=central.hub.lost,
        refused=dict(central.refused),
        nodes=_nodes(central.prober.checkers.values()),
        services=[
            ServiceFigures(each.name, len(each.found), bool(each.trouble))
            for each in central.resolver.discovery.standings()
        ],
    )


def _take_in(cells: dict[tuple[str, str, int, str], Ended], each: Ended) -> None:
    key = (each.listener, each.reason, each.status, each.node)
    known = cells.get(key)
    if known is not None:
        each = Ended(
            *key,
            known.sessions + each.sessions,
            known.bytes_up + each.bytes_up,
            known.bytes_down + each.bytes_down,
        )
    cells[key] = each


def _listeners(shares: Sequence[Share]) -> list[ListenerFigures]:
    sums: dict[str, ListenerFigures] = {}
    for each in chain.from_iterable(share.listeners for share in shares):
        known = sums.get(each.name)
        sums[each.name] = (
            each
            if known is None
            else ListenerFigures(
                each.name,
                known.active + each.active,
                known.bytes_up + each.bytes_up,
                known.bytes_down + each.bytes_down,
                known.accepted + each.accepted,
                known.pauses + each.pauses,
            )
        )
    return [*sums.values()]


def _both(spreads: Sequence[Spread]) -> Spread:
    counts = [sum(column) for column in zip(*(each.counts for each in spreads), strict=True)]
    return Spread(spreads[0].bounds, counts, sum(each.sum for each in spreads))


def _counts(all_of_them: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums = Counter[str]()
    for each in all_of_them:
        sums.update(each)
    return dict(sums)


def _ended(cell: Cell) -> Ended:
    node = str(cell.node) if cell.node else ""
    return Ended(cell.listener, cell.reason, cell.status, node, cell.sessions, cell.bytes_up, cell.bytes_down)


def _spread(histogram: Histogram) -> Spread:
    return Spread(histogram.bounds, tuple(histogram.counts), histogram.sum)


def _reload(what: str, status: ReloadStatus) -> ReloadFigures:
    applied_at = status.applied_at.timestamp() if status.applied_at else 0.0
    return ReloadFigures(what, status.reloads + 1, status.rejected, status.state == "rejected", applied_at)


def _drops(worker: Worker) -> Iterator[tuple[str, str, int]]:
    for reception in worker.udp.receptions:
        name = reception.listener.name
        for drop, count in reception.sessions.drops.items():
            yield name, str(drop), count
        yield name, "receive_buffer", reception.clients.overflowed  # by the kernel


def _nodes(checkers: Iterable[Checker]) -> list[NodeFigures]:
    return [
        NodeFigures(
            checker.upstream.key.removesuffix("/upstream"),
            node.host,
            node.port,
            health.is_up,
            dict(checker.results.get(node, {})),
        )
        for checker in checkers
        for node, health in checker.health.nodes.items()
    ]
