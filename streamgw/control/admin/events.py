"""The live feed over a WebSocket: one JSON object per event."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Final

import trio
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamgw.control.admin.app import JSONResponse
from streamgw.control.admin.fleet import EVENT_KINDS, Fleet, Subscription

PING_S: Final = 20.0
"""Silence for this long is broken by an event of kind `ping`: whoever has gone without a word is noticed, and proxies in
between do not think the connection dead."""
WANTED: Final = ("listener", "route", "upstream", "node", "transport")
"""What may be asked of an event, by the key of that name."""
PING: Final = "ping"


class EventServer:
    """The WebSocket of the live feed.

    * `kinds=session_opened,session_closed`: only these; all without it.
    * `route=`, `listener=`, `upstream=`, `node=`, `transport=`: only events with that value, and those that have none.

    One JSON object per message, `{"kind": …, "at": …, …}`. What the client says is read and thrown away.

    Args:
      max_clients: how many may listen; one more is refused with 503.
    """

    def __init__(self, fleet: Fleet, *, max_clients: int = 32, ping_s: float = PING_S) -> None:
        self._fleet = fleet
        self._max_clients = max_clients
        self._ping_s = ping_s
        self._clients = 0

    def routes(self, path: str) -> list[WebSocketRoute]:
        """For Starlette."""
        return [WebSocketRoute(path, self._serve)]

    async def _serve(self, websocket: WebSocket) -> None:
        query = websocket.query_params
        kinds = [kind for kind in query.get("kinds", "").split(",") if kind] or list(EVENT_KINDS)
        unknown = [kind for kind in kinds if kind not in EVENT_KINDS]
        if unknown:
            known = ", ".join(EVENT_KINDS)
            await _refuse(
                websocket, f"unknown kind {unknown[0]!r}: there are {known}", HTTPStatus.BAD_REQUEST
            )
        elif self._clients >= self._max_clients:
            why = f"{self._clients} listen already (streamgw.admin.max_event_clients)"
            await _refuse(websocket, why, HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            await self._tell(websocket, kinds, {name: query[name] for name in WANTED if query.get(name)})

    async def _tell(self, websocket: WebSocket, kinds: Collection[str], wanted: Mapping[str, str]) -> None:
        self._clients += 1
        subscription = self._fleet.subscribe(kinds, wanted)
        try:
            await websocket.accept()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, websocket, nursery.cancel_scope)
                await self._send_all(websocket, subscription)
        except* WebSocketDisconnect:
            pass  # in the middle of a message
        finally:
            subscription.close()
            self._clients -= 1

    async def _send_all(self, websocket: WebSocket, subscription: Subscription) -> None:
        while True:
            event = None
            with trio.move_on_after(self._ping_s):
                event = await subscription.receive()
            if event is None:
                text = json.dumps({"kind": PING})
            else:
                text = json.dumps({"kind": event.kind, "at": event.at, **event.data}, ensure_ascii=False)
            # Problems name files, whose names need not be UTF-8: see JSONResponse.
            await websocket.send_text(text.encode("utf-8", "backslashreplace").decode())


async def _refuse(websocket: WebSocket, why: str, status: HTTPStatus) -> None:
    await websocket.send_denial_response(JSONResponse({"error_msg": why}, status))


async def _cancel_when_gone(websocket: WebSocket, scope: trio.CancelScope) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()
