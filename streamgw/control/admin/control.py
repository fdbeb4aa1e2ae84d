"""The status pages: is it alive, is it ready, what is it doing?"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamgw.control.admin.app import JSONResponse, build_app


class Gateway(Protocol):
    """What the status pages ask of the process. Called on the event loop: must not block."""

    def ready(self) -> bool:
        """Whether a configuration is loaded and clients are accepted."""

    def status(self) -> Mapping[str, object]:
        """The body of `/streamgw/v1/status`: mappings, sequences, strings, numbers, and datetimes with a time zone."""


def build_status_app(gateway: Gateway) -> Starlette:
    """The pages of `apisix.status`, and ours.

    * `GET /status`: 200 `{"status": "ok"}` as long as the process answers at all (a liveness probe).
    * `GET /status/ready`: the same, or 503 with `error` while no client would be served (a readiness probe).
    * `GET /streamgw/v1/status`: everything that `streamgw status` shows.

    Source:
      APISIX: `apisix.status` (default 127.0.0.1:7085), conf/config.yaml.example; the bodies of its two pages.
    """

    async def alive(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        if gateway.ready():
            return JSONResponse({"status": "ok"})
        error = "no client is accepted: the gateway is starting or draining"
        return JSONResponse({"status": "error", "error": error}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def status(_request: Request) -> Response:
        return JSONResponse(gateway.status())

    return build_app(
        [Route("/status", alive), Route("/status/ready", ready), Route("/streamgw/v1/status", status)],
    )
