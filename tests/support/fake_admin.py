"""An admin server with sessions that do what a test says: the control handlers and the live feed, in their documented shapes.

`python -m tests.support.fake_admin` serves it from a process of its own, for what blocks (a browser); `POST /fake` calls
a method there. The figures never move by themselves.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamgw.control.admin.app import serve_admin
from streamgw.control.admin.fleet import SessionRow
from streamgw.control.admin.pages import build_page_routes
from streamgw.core.model import Address

STARTED_AT = 1_795_000_000.0
Row = dict[str, Any]


def session_row(number: int, **fields: object) -> Row:
    """A session that looks like one."""
    row = SessionRow(
        id=f"{number:08x}",
        transport="tcp",
        listener="tcp *:9100",
        client=f"10.{number // 65536 % 256}.{number // 256 % 256}.{number % 256}:{40000 + number % 20000}",
        peer=f"10.0.0.1:{40000 + number % 20000}",
        server="127.0.0.1:9100",
        server_name="",
        phase="relay",
        route="mysql",
        upstream="upstreams/db",
        node="127.0.0.1:3306",
        started_at=STARTED_AT + number,
        age_s=12.0,
        bytes_up=1000 * number,
        bytes_down=9000 * number,
        revision="3f2a9b0c1d2e3f40",
    )
    return {**attrs.asdict(row), **fields}


def written(**objects: Mapping[str, object]) -> dict[str, list[Row]]:
    """One `stream_routes` and what it needs, as the dumps give it: `written(mysql={…})`."""
    return {"stream_routes": [{"id": id_, **value} for id_, value in objects.items()]}


class FakeAdmin:
    """Its state is public; `open`, `close`, `reload` change it and tell the feed.

    Args:
      key: asked for by everything but the page; empty: none is.
    """

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.sessions: dict[str, Row] = {}
        self.killed: list[str] = []
        self.reloads_asked = 0
        self.by_reason: Counter[str] = Counter()
        self.bytes_ended = [0, 0]
        self.objects: dict[str, list[Row]] = {
            "stream_routes": [],
            "upstreams": [],
            "services": [],
            "ssls": [],
        }
        self.health: list[Row] = []
        self.status: Row = _status()
        self.explanation: Row | None = None
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._feeds: list[trio.MemorySendChannel[Row]] = []
        self._numbers = itertools.count(1)

    # What a test does

    def open(self, count: int = 1, **fields: object) -> None:
        """Sessions begin."""
        for _ in range(count):
            row = session_row(next(self._numbers), **fields)
            self.sessions[row["id"]] = row
            self.tell({"kind": "session_opened", "at": row["started_at"], **row})

    def move(self, id_: str, up: int, down: int) -> None:
        """Bytes flow."""
        self.sessions[id_]["bytes_up"] += up
        self.sessions[id_]["bytes_down"] += down

    def close(self, id_: str, reason: str = "closed", fault: str = "none", detail: str = "") -> None:
        """A session ends."""
        row = self.sessions.pop(id_)
        self.by_reason[reason] += 1
        self.bytes_ended[0] += row["bytes_up"]
        self.bytes_ended[1] += row["bytes_down"]
        end = {
            "reason": reason,
            "fault": fault,
            "side": "",
            "detail": detail,
            "duration_s": 1.5,
            "connect_s": 0.01,
        }
        self.tell({"kind": "session_closed", "at": row["started_at"] + 1.5, **row, **end})

    def reload(self, state: str, *problems: str, revision: str = "feedc0de00000000") -> None:
        """A change of routes.d is applied or rejected."""
        config = self.status["config"]
        config["state"] = state
        config["reloads" if state == "applied" else "rejected"] += 1
        if state == "applied":
            config["revision"] = revision
        place = {"file": "routes.d/mysql.yaml", "line": 7, "column": 3, "pointer": "stream_routes[0]"}
        config["problems"] = [{**place, "message": text} for text in problems]
        event = {
            "revision": revision,
            "routes": 1,
            "warnings": 0,
            "problems": list(problems),
            "duration_s": 0.02,
        }
        self.tell({"kind": "reload", "at": STARTED_AT, "state": state, "what": "routes", **event})

    def restart(self) -> None:
        """Another process answers from now on."""
        self.sessions.clear()
        self.by_reason.clear()
        self.bytes_ended = [0, 0]
        self.status |= {"pid": self.status["pid"] + 1, "uptime_s": 0.5}

    def set_objects(self, **collections: Sequence[Row]) -> None:
        """What is written in routes.d."""
        for name, rows in collections.items():
            self.objects[name] = list(rows)
        self.status["objects"] = {
            name: {row["id"]: "0" for row in rows} for name, rows in self.objects.items()
        }
        self.status["config"]["revision"] = f"{abs(hash(json.dumps(self.objects, default=str))):016x}"

    def set_health(self, **nodes: str) -> None:
        """`{"127.0.0.1:80": "unhealthy"}`"""
        split = [(node.rpartition(":"), status) for node, status in nodes.items()]
        shown = [{"ip": ip, "port": int(port), "status": status} for (ip, _, port), status in split]
        self.health = [{"name": "/apisix/upstreams/db", "type": "tcp", "nodes": shown}]

    def set_status(self, **fields: object) -> None:
        """Fields of the status."""
        self.status |= fields

    def tell(self, event: Row) -> None:
        """Send an event to whoever listens."""
        for feed in self._feeds:
            feed.send_nowait(event)

    # What it answers

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                *build_page_routes(),
                Route("/fake", self._call, methods=["POST"]),
                Route("/streamgw/v1/status", self._guarded(self._status)),
                Route("/streamgw/v1/sessions", self._guarded(self._list)),
                Route("/streamgw/v1/sessions/{id}", self._guarded(self._kill), methods=["DELETE"]),
                Route("/streamgw/v1/explain", self._guarded(self._explain)),
                Route("/streamgw/v1/reload", self._guarded(self._reload), methods=["POST"]),
                Route("/streamgw/v1/{kind}", self._guarded(self._dump)),
                Route("/apisix/admin/ssls", self._guarded(self._ssls)),
                WebSocketRoute("/streamgw/v1/events", self._feed),
            ]
        )

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if self.key and request.headers.get("x-api-key") != self.key:
                text = "failed to check token" if "x-api-key" in request.headers else "missing apikey"
                return JSONResponse({"error_msg": text, "description": text}, 401)
            self.asked.append((request.url.path, dict(request.query_params)))
            answer: Response = await handler(request)
            return answer

        return guarded

    async def _call(self, request: Request) -> Response:
        call = await request.json()
        getattr(self, call["do"])(*call.get("args", ()), **call.get("with", {}))
        return JSONResponse(
            {"killed": self.killed, "sessions": list(self.sessions), "feeds": len(self._feeds)}
        )

    async def _status(self, _request: Request) -> Response:
        live = self.sessions.values()
        by_listener = Counter(row["listener"] for row in live)
        self.status["uptime_s"] += 0.001
        self.status["sessions"] = {
            "active": len(live),
            "total": len(live) + self.by_reason.total(),
            "by_reason": dict(self.by_reason),
            "bytes_up": self.bytes_ended[0] + sum(row["bytes_up"] for row in live),
            "bytes_down": self.bytes_ended[1] + sum(row["bytes_down"] for row in live),
        }
        for listener in self.status["listeners"]:
            listener["sessions"] = by_listener[listener["name"]]
        return JSONResponse(self.status)

    async def _list(self, request: Request) -> Response:
        asked = dict(request.query_params)
        limit = int(asked.pop("limit", "1000"))
        fitting = [
            row
            for row in self.sessions.values()
            if all(str(row[name]).startswith(value) for name, value in asked.items())
        ]
        return JSONResponse({"sessions": fitting[:limit], "total": len(fitting)})

    async def _kill(self, request: Request) -> Response:
        id_ = request.path_params["id"]
        if id_ not in self.sessions:
            return JSONResponse({"status": "error", "error": f"no session {id_}"}, 404)
        self.killed.append(id_)
        self.close(id_, "killed")
        return JSONResponse({"killed": id_})

    async def _reload(self, _request: Request) -> Response:
        self.reloads_asked += 1
        return JSONResponse({"status": "ok"}, 202)

    async def _explain(self, request: Request) -> Response:
        asked = request.query_params
        try:
            port = int(asked.get("server_port", ""))
        except ValueError:
            return JSONResponse({"status": "error", "error": "server_port is no port"}, 400)
        rows = self.objects["stream_routes"]
        fits = next((row for row in rows if row.get("server_port", port) == port), None)
        routes = [
            {
                "id": row["id"],
                **_place(number),
                "priority": row.get("priority", 0),
                "wins": row is fits,
                "why": "wins" if row is fits else f"server_port is {row.get('server_port')}, not {port}",
            }
            for number, row in enumerate(rows)
        ]
        server = f"{asked.get('server_addr') or '127.0.0.1'}:{port}"
        heard = next(
            (each["name"] for each in self.status["listeners"] if each["name"].endswith(f":{port}")), None
        )
        said = {
            "client": asked.get("remote_addr"),
            "server": server,
            "sni": asked.get("sni"),
            "alpn": [],
            "udp": None,
            "tls": None,
        }
        return JSONResponse(
            {**said, "listener": heard, "winner": fits["id"] if fits else None, "routes": routes}
        )

    async def _dump(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind == "healthcheck":
            return JSONResponse(self.health or {})
        rows = enumerate(self.objects[kind])
        shown = [
            {"key": f"/apisix/{kind}/{row['id']}", "value": row, **_place(number)} for number, row in rows
        ]
        return JSONResponse(shown)

    async def _ssls(self, _request: Request) -> Response:
        rows = [{"key": f"/apisix/ssls/{row['id']}", "value": row} for row in self.objects["ssls"]]
        return JSONResponse({"list": rows, "total": len(rows)})

    async def _feed(self, socket: WebSocket) -> None:
        if self.key and socket.query_params.get("api_key", socket.headers.get("x-api-key")) != self.key:
            await socket.close(4401)
            return
        await socket.accept()
        send, receive = trio.open_memory_channel[Row](math.inf)
        self._feeds.append(send)
        try:
            async with trio.open_nursery() as nursery, receive:
                nursery.start_soon(_pass_on, receive, socket)
                while (await socket.receive())["type"] != "websocket.disconnect":
                    pass
                nursery.cancel_scope.cancel()
        finally:
            self._feeds.remove(send)

    @property
    def feeds(self) -> int:
        """How many listen."""
        return len(self._feeds)


async def _pass_on(events: trio.MemoryReceiveChannel[Row], socket: WebSocket) -> None:
    async for event in events:
        try:
            await socket.send_text(json.dumps(event))
        except WebSocketDisconnect:
            return


def _place(number: int) -> Row:
    return {"file": "routes.d/all.yaml", "line": 3 + 8 * number}


def _status() -> Row:
    runs = {
        "revision": "3f2a9b0c1d2e3f40",
        "state": "applied",
        "applied_at": "2026-11-21T10:00:00.000+00:00",
        "problems": [],
        "warnings": [],
        "reloads": 1,
        "rejected": 0,
    }
    return {
        "version": "0.1.0",
        "pid": 4711,
        "uptime_s": 7300.0,
        "ready": True,
        "draining": False,
        "config": dict(runs),
        "settings": {**runs, "revision": ""},
        "listeners": [
            {"name": "tcp *:9100", "state": "listening", "sessions": 0, "accepted": 10},
            {"name": "tcp 127.0.0.1:9101", "state": "listening", "sessions": 0, "accepted": 3},
        ],
        "sessions": {"active": 0, "total": 0, "by_reason": {}, "bytes_up": 0, "bytes_down": 0},
        "access_log": {"dropped": 0},
        "objects": {},
        "certificates": [],
    }


async def _serve(port: int, key: str) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_admin, FakeAdmin(key).app(), Address("127.0.0.1", port))
        sys.stdout.write(f"listening on {address.port}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
