"""A gateway with several addresses: each is a place of its own to its clients, also behind a wildcard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.child import find_program, run, running
from tests.support.gateway import Gateway, stream_route
from tests.support.namespace import need_networks, private_network
from tests.support.servers import Prefix
from tests.support.udp_servers import dig, dnsmasq

pytestmark = [pytest.mark.slow, pytest.mark.servers]

FIRST, SECOND, CLIENT = "192.0.2.1", "192.0.2.2", "192.0.2.9"
FIRST6, SECOND6, CLIENT6 = "2001:db8::1", "2001:db8::2", "2001:db8::9"
PORT = 5300


@attrs.frozen
class Net:
    """Two machines on one wire: the gateway's, with two addresses of each family on its interface, and a client's."""

    gateway: Prefix
    client: Prefix


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    need_networks()
    unshare = find_program("unshare", package="util-linux")
    keep = [unshare, "--net", "sh", "-c", "echo ready && exec sleep infinity"]
    with contextlib.ExitStack() as stack:
        gateway = stack.enter_context(private_network(tmp_path))
        other = stack.enter_context(running([*gateway, *keep], log=tmp_path / "client-network.log"))
        other.wait_for_line("ready")
        client = tuple(str(other.pid) if word.isdecimal() else word for word in gateway)
        _ip(gateway, f"link add wire type veth peer name wire netns {other.pid}")
        _give(gateway, FIRST, SECOND, FIRST6, SECOND6)
        _give(client, CLIENT, CLIENT6)
        yield Net(gateway, client)


def _give(machine: Prefix, *addresses: str) -> None:
    for address in addresses:
        # Without `nodad` an IPv6 address is tentative for a second: nobody can use it.
        _ip(
            machine,
            f"address add {address}/64 dev wire nodad"
            if ":" in address
            else f"address add {address}/24 dev wire",
        )
    _ip(machine, "link set wire up")


def _ip(machine: Prefix, words: str) -> None:
    run([*machine, find_program("ip", package="iproute2"), *words.split()])


@pytest.fixture
def asked(net: Net, gateway: Gateway, tmp_path: Path) -> Iterator[Net]:
    """A gateway on the wildcard, with a route for each address, and a name server behind each."""
    nodes = {"first": 5301, "second": 5302}
    gateway.write_settings([], [PORT])
    gateway.write_routes(
        "dns.yaml",
        stream_route("first", nodes["first"], server_addr=FIRST),
        stream_route("second", nodes["second"], server_addr=SECOND),
        stream_route("first6", nodes["first"], server_addr=FIRST6),
        stream_route("second6", nodes["second"], server_addr=SECOND6),
    )
    with contextlib.ExitStack() as stack:
        for name, answer in (("first", "10.0.0.1"), ("second", "10.0.0.2")):
            directory = tmp_path / name
            directory.mkdir()
            stack.enter_context(dnsmasq(directory, nodes[name], answer, prefix=net.gateway))
        child = stack.enter_context(gateway.running(prefix=net.gateway, wait=False))
        child.wait_for_line("ready")
        yield net


@pytest.mark.parametrize(
    ("address", "answer"),
    [(FIRST, "10.0.0.1"), (SECOND, "10.0.0.2"), (FIRST6, "10.0.0.1"), (SECOND6, "10.0.0.2")],
)
def test_the_answer_comes_from_the_address_that_was_asked(asked: Net, address: str, answer: str) -> None:
    """The kernel alone would answer from the interface's first address; dig, like everybody, drops such an answer."""
    said = dig(PORT, "a.test", "+tries=1", "+timeout=20", host=address, prefix=asked.client)

    assert f"SERVER: {address}#{PORT}" in said
    assert f"\t{answer}\n" in said
    assert "unexpected source" not in said


def test_one_client_port_may_ask_both_addresses(asked: Net, gateway: Gateway) -> None:
    """Who asks two addresses of ours from one port has two sessions, each with its own route."""
    source = f"{CLIENT}#5353"
    for address, answer in ((FIRST, "10.0.0.1"), (SECOND, "10.0.0.2"), (FIRST, "10.0.0.1")):
        said = dig(PORT, "a.test", "+tries=1", "+timeout=20", "-b", source, host=address, prefix=asked.client)
        assert f"\t{answer}\n" in said

    assert gateway.child is not None
    gateway.child.stop()
    assert sorted((line["server"], line["datagrams_up"]) for line in gateway.access_lines()) == [
        (f"{FIRST}:{PORT}", 2),
        (f"{SECOND}:{PORT}", 1),
    ]
