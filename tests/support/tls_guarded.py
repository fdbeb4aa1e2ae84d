"""A gateway with an open name and a guarded one, and witnesses behind both: the scene of everybody who wants to get in."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from tests.support.certificates import CA_PEM, issue
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.tls_clients import Witness, ssl_object

OPEN, GUARDED = "open.test.com", "guarded.test.com"
BOTH_NAMES = issue(OPEN, GUARDED)
"""One pair for both names: what a wildcard certificate would be. Only the rule for clients differs."""
HANDSHAKE_TIMEOUT_S = 4
PREREAD_TIMEOUT_S = 4
PREREAD_LIMIT_BYTES = 20_000


@attrs.frozen
class Scene:
    """A running gateway: open.test.com is for everybody, guarded.test.com for those with a certificate of our CA."""

    gateway: Gateway
    port: int
    behind_open: Witness
    behind_guarded: Witness
    directory: Path

    def ending_of(self, client: socket.socket | tuple[str, int]) -> Mapping[str, Any]:
        """The access-log line of this client."""
        host, port = client if isinstance(client, tuple) else client.getsockname()
        return self.gateway.wait_for_access_line(
            lambda line: line["client"] == f"{host}:{port}", what=f"of {host}:{port}"
        )

    def latest(self, act: Callable[[], object]) -> Mapping[str, Any]:
        """The access-log line of the one session that `act` makes."""
        self.wait_until_idle()
        before = len(self.gateway.access_lines())
        act()
        self.wait_until_idle()
        (line,) = self.gateway.access_lines()[before:]
        return line

    def wait_until_idle(self) -> None:
        """Wait until every session so far has its line in the log."""
        self.gateway.wait_for_status(
            lambda status: status["sessions"]["total"] == len(self.gateway.access_lines()),
            what="every session is over and logged",
        )


@contextlib.contextmanager
def guarded_gateway(directory: Path, ports: Ports) -> Iterator[Scene]:
    """Run one."""
    gateway, port = Gateway(directory / "gateway", ports), ports.take()
    limits = {
        "handshake_timeout_s": HANDSHAKE_TIMEOUT_S,
        "preread_timeout_s": PREREAD_TIMEOUT_S,
        "preread_limit_bytes": PREREAD_LIMIT_BYTES,
    }
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}], streamgw={"limits": limits})
    with Witness() as behind_open, Witness() as behind_guarded:
        gateway.write_routes(
            "routes.yaml",
            stream_route("open", behind_open.port, sni=OPEN),
            stream_route("guarded", behind_guarded.port, sni=GUARDED),
            # Whoever is neither: a route that would take them, had they come through the handshake.
            stream_route("rest", behind_guarded.port),
            ssls=[
                ssl_object(BOTH_NAMES, OPEN, id="open"),
                ssl_object(BOTH_NAMES, GUARDED, id="guarded", client={"ca": CA_PEM}),
            ],
        )
        with gateway.running():
            yield Scene(gateway, port, behind_open, behind_guarded, directory)


@contextlib.contextmanager
def nobody_uninvited(scene: Scene) -> Iterator[None]:
    """One test's turn. Whoever it does not accept behind the guarded name came through uninvited."""
    scene.wait_until_idle()
    scene.behind_open.visitors()  # of tests before
    yield
    uninvited = scene.behind_guarded.visitors()
    scene.behind_open.let_go()
    scene.behind_guarded.let_go()
    scene.wait_until_idle()
    assert uninvited + scene.behind_guarded.visitors() == 0, "somebody came through uninvited"
