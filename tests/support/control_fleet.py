"""A gateway behind the control API that says what a test wants it to say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from streamgw.config.documents import Document
from streamgw.control.admin.feed import Feed, Hub
from streamgw.control.admin.fleet import (
    CertificateFigures,
    Ended,
    Figures,
    ListenerFigures,
    NodeFigures,
    ReloadFigures,
    SessionFilter,
    SessionRow,
    Spread,
)
from streamgw.core.model import Awaited, Facts, Source

FIGURES = Figures(
    revision="3f2a9b0c",
    objects={"stream_routes": 2},
    reloads=(
        ReloadFigures("routes", applied=3, rejected=1, is_rejected=True, applied_at=1_700_000_000.0),
        ReloadFigures("settings", applied=1, rejected=0, is_rejected=False, applied_at=1_700_000_000.0),
    ),
    listeners=(
        ListenerFigures("tcp *:9100", active=2, bytes_up=1, bytes_down=2, accepted=9, pauses=1),
        ListenerFigures("udp *:9100", active=1, bytes_up=10, bytes_down=20, accepted=4, pauses=0),
    ),
    ended=(
        Ended("tcp *:9100", "closed", 200, "10.0.0.1:80", 5, 100, 200),
        Ended("tcp *:9100", "reset", 200, "10.0.0.1:80", 1, 0, 0),
        Ended("udp *:9100", "closed", 200, "10.0.0.1:80", 3, 1000, 2000),
        Ended("tcp [::1]:9101", "no_route", 403, "", 1, 0, 0),
    ),
    connect=Spread((0.1, 1.0), (3, 2, 1), 4.5),
    duration=Spread((0.1, 1.0), (0, 0, 9), 90.0),
    connections={'my "route"\n': 5},
    drops={("udp *:9100", "no_route"): 7},
    certificates=(CertificateFigures("a.test", 1_800_000_000.0),),
    bugs=0,
    log_dropped=8,
    access_log_dropped=1,
    records_dropped={"tcp://logs.test:514": 6},
    event_clients=2,
    events_lost=3,
    refused={"key": 4},
    nodes=(
        NodeFigures("upstreams/1", "10.0.0.1", 80, is_up=True, probes={"success": 8, "timeout": 1}),
        NodeFigures("upstreams/1", "fd00::1", 80, is_up=False, probes={}),
    ),
)


def session_row(id_: str = "a1-1", **fields: str) -> SessionRow:
    return SessionRow(
        **{
            "id": id_,
            "transport": "tcp",
            "listener": "tcp *:9100",
            "client": "10.1.2.3:50123",
            "peer": "10.1.2.3:50123",
            "server": "127.0.0.1:9100",
            "server_name": "",
            "phase": "relay",
            "route": "mysql",
            "upstream": "upstreams/1",
            "node": "10.0.0.5:3306",
            **fields,
        },
        started_at=1_700_000_000.0,
        age_s=2.5,
        bytes_up=10,
        bytes_down=20,
    )


def document(collection: str, id_: str, **data: object) -> Document:
    return Document((collection, id_), Source("routes.d/a.yaml", 3), 0, {"id": id_, **data}, "d1", None)


class ControlFleet:
    """Its state is public."""

    def __init__(self) -> None:
        self.rows = [session_row()]
        self.killed: list[str] = []
        self.wanted: list[SessionFilter] = []
        self.explained: list[Facts] = []
        self.reloads = 0
        self.checkers: Sequence[Mapping[str, object]] = ()
        self.services: Sequence[Mapping[str, object]] = ()
        self.objects: Sequence[Document] = ()
        self.hub = Hub(lambda: 5.0)

    def ready(self) -> bool:
        return True

    async def status(self) -> Mapping[str, object]:
        return {"pid": 7}

    async def listeners(self) -> Sequence[Mapping[str, object]]:
        return [{"name": "tcp *:9100", "state": "listening"}]

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        self.wanted.append(wanted)
        return self.rows[: wanted.limit], len(self.rows)

    async def kill(self, session_id: str) -> bool:
        if all(row.id != session_id for row in self.rows):
            return False
        self.killed.append(session_id)
        return True

    def explain(self, facts: Facts) -> Mapping[str, object]:
        self.explained.append(facts)
        return {"winner": "mysql"}

    async def figures(self) -> Figures:
        return FIGURES

    def health(self) -> Sequence[Mapping[str, object]]:
        return self.checkers

    def discovery(self) -> Sequence[Mapping[str, object]]:
        return self.services

    def documents(self) -> Sequence[Document]:
        return self.objects

    def reload(self) -> None:
        self.reloads += 1

    def poke(self) -> None:
        raise AssertionError("the control API reloads everything")

    async def wait_applied(self, awaited: Awaited, deadline: float) -> Sequence[int]:
        raise AssertionError("the control API waits for nothing")

    def subscribe(self, kinds: Collection[str], wanted: Mapping[str, str]) -> Feed:
        return self.hub.subscribe(kinds, wanted)
