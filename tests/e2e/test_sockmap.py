"""`streamgw.relay: sockmap` on a gateway that runs: it does what it says, or says why it does not."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, stream_route
from tests.support.origin import TIMEOUT_S, Visitor, named_origin
from tests.support.ports import Ports

pytestmark = pytest.mark.slow


@pytest.fixture
def port(gateway: Gateway, ports: Ports, tmp_path: Path) -> int:
    """Of a gateway that shall let the kernel relay."""
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], streamgw={"relay": "sockmap", **access_log(gateway)})
    return port


def access_log(gateway: Gateway) -> dict[str, object]:
    return {"access_log": {"path": str(gateway.access_log)}}


def application_log(gateway: Gateway) -> str:
    return (gateway.directory / "streamgw.log").read_text()


def test_a_talk_of_many_small_messages_is_the_same_and_its_bytes_are_counted(
    gateway: Gateway, ports: Ports, port: int, tmp_path: Path
) -> None:
    upstream = ports.take()
    gateway.write_routes("a.yaml", stream_route("a", upstream))

    with named_origin(tmp_path, upstream, "a"), gateway.running():
        with Visitor(port) as visitor:
            visitor.greeting()
            for number in range(200):
                assert visitor.echo(f"message {number}").strip().endswith(f"message {number}")
        line = gateway.wait_for_access_line(lambda line: line["route"] == "a", what="its end")
        log = application_log(gateway)
        (worker,) = gateway.status()["workers"]

    assert ("sockmap_ready" in log, "sockmap_unavailable" in log) == (
        worker["relay"] == "sockmap",
        worker["relay"] == "pump",
    )
    assert line["bytes_up"] == sum(len(f"message {number}\n") for number in range(200))
    assert line["reason"] == "closed"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_without_the_privileges_it_says_so_and_relays_as_ever(
    gateway: Gateway, ports: Ports, port: int, tmp_path: Path
) -> None:
    upstream = ports.take()
    gateway.write_routes("a.yaml", stream_route("a", upstream))
    prefix = ["setpriv", "--bounding-set", "-sys_admin,-bpf,-net_admin", "--"]

    with named_origin(tmp_path, upstream, "a"), gateway.running(prefix=prefix):
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
            assert client.makefile("rb").readline() == b"a\n"
        log = application_log(gateway)

    assert "sockmap_unavailable" in log
    assert "CAP_BPF and CAP_NET_ADMIN" in log or "it was tested on" in log or "made for x86-64" in log
