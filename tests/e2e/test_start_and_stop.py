"""How the gateway starts, refuses to start, drains and ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.child import find_program
from tests.support.gateway import Gateway, stream_route, write_atomically
from tests.support.namespace import is_listening
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

_EX_CONFIG = 78
_FEW_DESCRIPTORS = 64
_DRAIN_S = 60
_AT_ONCE_S = 5


@attrs.frozen
class Scene:
    """One listener, one route, to an origin that echoes."""

    gateway: Gateway
    port: int


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    port, origin = ports.take(), ports.take()
    _write_settings(gateway, port, drain_s=_DRAIN_S)
    gateway.write_routes("route.yaml", stream_route("1", origin))
    with named_origin(tmp_path, origin, "alpha"):
        yield Scene(gateway, port)


def _write_settings(gateway: Gateway, port: int, *, drain_s: int) -> None:
    gateway.write_settings([f"127.0.0.1:{port}"], nginx_config={"worker_shutdown_timeout": f"{drain_s}s"})


def _refusal(gateway: Gateway) -> str:
    """Start a gateway that must refuse; return what it said."""
    with gateway.running(wait=False) as child:
        assert child.wait() == _EX_CONFIG
        return child.output()


def test_a_broken_route_at_the_start_is_refused_with_its_place(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings([f"127.0.0.1:{ports.take()}"])
    gateway.write_routes("good.yaml", stream_route("1", 1995))
    write_atomically(
        gateway.routes / "bad.yaml",
        "stream_routes:\n  - id: 2\n    upstream:\n      nodes:\n        'host': 1\n",
    )

    said = _refusal(gateway)

    assert "routes.d/bad.yaml:5" in said


def test_broken_settings_at_the_start_are_refused_with_their_place(gateway: Gateway) -> None:
    write_atomically(gateway.config, "apisix:\n  stream_proxi:\n    tcp: [9100]\n")

    said = _refusal(gateway)

    assert "conf/config.yaml:2:3" in said
    assert "stream_proxy" in said, "the nearest known name"


def test_a_taken_port_at_the_start_is_refused_by_name(gateway: Gateway) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as foreign:
        taken: int = foreign.getsockname()[1]
        gateway.write_settings([f"127.0.0.1:{taken}"])
        gateway.write_routes("route.yaml", stream_route("1", 1995))

        said = _refusal(gateway)

    assert f"127.0.0.1:{taken}" in said


def test_an_empty_directory_is_a_configuration_that_serves_nobody(gateway: Gateway, ports: Ports) -> None:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])

    with gateway.running():
        assert whom(port) == ""
        line = gateway.wait_for_access_line(lambda line: line["reason"] == "no_route", what="no_route")
        assert line["listener"] == f"tcp 127.0.0.1:{port}"


def test_sigterm_lets_sessions_finish_and_accepts_no_more(scene: Scene) -> None:
    with scene.gateway.running() as child, Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        child.send_signal(signal.SIGTERM)

        child.wait_until(lambda: not is_listening(scene.port), what="listens no more")
        assert not scene.gateway.is_ready(), "a load balancer must see it go"
        with pytest.raises(ConnectionRefusedError):
            whom(scene.port)
        assert visitor.echo("still there?") == "still there?"
        visitor.close()
        assert child.wait(timeout_s=_DRAIN_S / 2) == 0
        (line,) = [line for line in scene.gateway.access_lines() if line["bytes_up"]]
        assert line["reason"] == "closed"


def test_sigterm_without_sessions_ends_at_once(scene: Scene) -> None:
    """The quickest of a few ends: the machine may be busy at any other one."""
    took_s: list[float] = []
    while not took_s or (min(took_s) >= _AT_ONCE_S and len(took_s) < 4):
        with scene.gateway.running() as child:
            began_at = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout_s=_DRAIN_S / 2) == 0
            took_s.append(time.monotonic() - began_at)

    assert min(took_s) < _AT_ONCE_S, took_s


def test_sessions_past_the_drain_deadline_are_cut_and_say_so(scene: Scene) -> None:
    _write_settings(scene.gateway, scene.port, drain_s=1)
    with scene.gateway.running() as child, Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        child.send_signal(signal.SIGTERM)

        assert visitor.is_over()
        assert child.wait() == 0
        assert [line["reason"] for line in scene.gateway.access_lines()] == ["drain"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_drain_at_once(scene: Scene, number: signal.Signals) -> None:
    with scene.gateway.running() as child, Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"
        child.send_signal(number)
        child.wait_until(lambda: not is_listening(scene.port), what="listens no more")

        child.send_signal(number)

        assert child.wait(timeout_s=_DRAIN_S / 2) == 0
        assert visitor.is_over()
        assert [line["reason"] for line in scene.gateway.access_lines()] == ["drain"]


def test_without_descriptors_it_stays_up_and_recovers(scene: Scene) -> None:
    prlimit = find_program("prlimit", package="util-linux")
    limit = f"--nofile={_FEW_DESCRIPTORS}:{_FEW_DESCRIPTORS}"

    with scene.gateway.running(prefix=[prlimit, limit]) as child:
        with contextlib.ExitStack() as stack:
            early = stack.enter_context(Visitor(scene.port))
            assert early.greeting() == "alpha"
            for _ in range(_FEW_DESCRIPTORS):
                stack.enter_context(Visitor(scene.port))
            child.wait_for_line("too many open files")
            # Who was there before is served on; the others wait in the kernel's backlog or were turned away.
            assert early.echo("still there?") == "still there?"

        child.wait_until(lambda: _is_served(scene.port), what="serves again")
        scene.gateway.wait_for_status(
            lambda status: status["sessions"]["active"] == 0, what="no session is left"
        )


def _is_served(port: int) -> bool:
    return whom(port) == "alpha"
