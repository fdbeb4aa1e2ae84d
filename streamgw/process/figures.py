"""The numbers behind the metrics, gathered when somebody asks for them."""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import trio

from streamgw.control.admin.fleet import (
    CertificateFigures,
    Ended,
    Figures,
    ListenerFigures,
    NodeFigures,
    ReloadFigures,
    Spread,
)
from streamgw.control.reloader import ReloadStatus
from streamgw.core.tally import Cell, Histogram
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.worker import Worker

BATCH = 500
"""Sessions or counts looked at before others get a turn: a fraction of a millisecond."""

_STARTED_AT: Callable[[Session | UDPSession], float] = operator.attrgetter("started_at")


def batches(worker: Worker) -> Iterator[Sequence[Session | UDPSession]]:
    """Every session that lives now, oldest first, BATCH at a time. What ends meanwhile is among them."""
    everyone: list[Session | UDPSession] = [*worker.sessions.live.values(), *worker.udp.live.values()]
    everyone.sort(key=_STARTED_AT)  # two runs in order already: one merge
    for start in range(0, len(everyone), BATCH):
        yield everyone[start : start + BATCH]


async def take_figures(worker: Worker, settings: ReloadStatus) -> Figures:
    """What has ended by now, and what lives now; no session counts twice, and no total ever goes back.

    Lets others run while it counts.
    """
    cells, connect, duration = (
        worker.tally.cells(),
        _spread(worker.tally.connect),
        _spread(worker.tally.duration),
    )
    snapshot, accepted = worker.reloader.current, Counter(worker.sessions.totals.accepted)
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
    certificates = {each.id: each.not_after_s for each in snapshot.certificates.values()}
    return Figures(
        revision=snapshot.revision,
        objects=Counter(collection for collection, _ in snapshot.sources),
        reloads=(_reload("routes", worker.reloader.status), _reload("settings", settings)),
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
        drops=_drops(worker),
        certificates=[CertificateFigures(id_, not_after) for id_, not_after in certificates.items()],
        bugs=worker.bugs,
        access_log_dropped=worker.access_log.dropped,
        records_dropped=dict(worker.shipper.dropped),
        event_clients=len(worker.hub),
        events_lost=worker.hub.lost,
        refused=dict(worker.refused),
        nodes=_nodes(worker),
    )


def _ended(cell: Cell) -> Ended:
    node = str(cell.node) if cell.node else ""
    return Ended(cell.listener, cell.reason, cell.status, node, cell.sessions, cell.bytes_up, cell.bytes_down)


def _spread(histogram: Histogram) -> Spread:
    return Spread(histogram.bounds, tuple(histogram.counts), histogram.sum)


def _reload(what: str, status: ReloadStatus) -> ReloadFigures:
    applied_at = status.applied_at.timestamp() if status.applied_at else 0.0
    return ReloadFigures(what, status.reloads + 1, status.rejected, status.state == "rejected", applied_at)


def _drops(worker: Worker) -> dict[tuple[str, str], int]:
    counts: Counter[tuple[str, str]] = Counter()
    for reception in worker.udp.receptions:
        for drop, count in reception.sessions.drops.items():
            counts[reception.listener.name, str(drop)] += count
        counts[reception.listener.name, "receive_buffer"] += reception.clients.overflowed  # by the kernel
    return counts


def _nodes(worker: Worker) -> list[NodeFigures]:
    return [
        NodeFigures(
            checker.upstream.key.removesuffix("/upstream"),
            node.host,
            node.port,
            health.is_up,
            dict(checker.results.get(node, {})),
        )
        for checker in worker.prober.checkers.values()
        for node, health in checker.health.nodes.items()
    ]
