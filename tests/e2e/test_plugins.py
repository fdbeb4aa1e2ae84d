"""Plugins on a gateway that runs: what clients see, what the log says, what an edit changes."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.gateway import Gateway, stream_route, write_atomically
from tests.support.origin import TIMEOUT_S, named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow


@pytest.fixture
def origins(tmp_path: Path, ports: Ports) -> Iterator[dict[str, int]]:
    """Two upstreams that say their name."""
    found = {"a": ports.take(), "b": ports.take()}
    with named_origin(tmp_path, found["a"], "a"), named_origin(tmp_path, found["b"], "b"):
        yield found


@pytest.fixture
def port(gateway: Gateway, ports: Ports) -> int:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])
    return port


def write(gateway: Gateway, origins: Mapping[str, int], **plugins: object) -> None:
    """One route to `a`. Names of plugins with `_` for `-`."""
    named = {name.replace("_", "-"): options for name, options in plugins.items()}
    gateway.write_routes("a.yaml", stream_route("a", origins["a"], plugins=named))


def whom_from(host: str, port: int) -> str:
    """Connect from that address; the origin's name, empty when nobody answers."""
    with (
        contextlib.suppress(ConnectionResetError),
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=(host, 0)) as client,
    ):
        return said_to(client)
    return ""


def said_to(client: socket.socket) -> str:
    """The first line; empty when the connection ends without one."""
    with contextlib.suppress(ConnectionResetError):
        return client.makefile("rb").readline().decode().strip()
    return ""


def test_a_refused_client_is_closed_and_the_log_says_who_refused_it(
    gateway: Gateway, port: int, origins: dict[str, int]
) -> None:
    write(gateway, origins, ip_restriction={"whitelist": ["127.0.0.2"]})

    with gateway.running():
        assert whom_from("127.0.0.2", port) == "a"
        assert whom_from("127.0.0.1", port) == ""

        line = gateway.wait_for_access_line(lambda line: line["reason"] == "rejected", what="refused")
        assert line["detail"] == "ip-restriction: Your IP address is not allowed"
        assert (line["fault"], line["phase"], line["route"]) == ("client", "plugins", "a")

        write(gateway, origins, ip_restriction={"blacklist": ["127.0.0.2"]})
        gateway.child.wait_until(lambda: whom_from("127.0.0.1", port) == "a", what="the edit is in effect")
        assert whom_from("127.0.0.2", port) == ""


def greetings(port: int, count: int) -> Iterator[tuple[socket.socket, str]]:
    """So many clients at once, each with what it was told."""
    clients = [socket.create_connection(("127.0.0.1", port), TIMEOUT_S) for _ in range(count)]
    return ((client, said_to(client)) for client in clients)


def test_no_more_sessions_than_allowed_live_at_once(
    gateway: Gateway, port: int, origins: dict[str, int]
) -> None:
    limit = {"conn": 5, "burst": 0, "default_conn_delay": 0.1, "key": "remote_addr"}
    write(gateway, origins, limit_conn=limit)

    with gateway.running(), contextlib.ExitStack() as stack:
        crowd = list(greetings(port, 200))
        for client, _ in crowd:
            stack.enter_context(client)
        let_in = [client for client, said in crowd if said]
        assert len(let_in) == 5

        for client in let_in[:2]:
            client.close()
        gateway.wait_for_access_line(lambda line: line["reason"] == "closed", what="one has left")
        assert_lets_in(gateway, port, stack, 2)

        # The five that are there were there before the edit.
        write(gateway, origins, limit_conn=limit | {"conn": 6})
        assert_lets_in(gateway, port, stack, 1)


def assert_lets_in(gateway: Gateway, port: int, stack: contextlib.ExitStack, count: int) -> None:
    """Exactly so many more, however often one tries."""
    came = 0

    def try_again() -> bool:
        nonlocal came
        for client, said in greetings(port, 10):
            stack.enter_context(client)
            came += bool(said)
        return came >= count

    assert gateway.child is not None
    gateway.child.wait_until(try_again, what=f"{count} more are let in")
    try_again()
    assert came == count


def test_sessions_are_split_exactly(gateway: Gateway, port: int, origins: dict[str, int]) -> None:
    def split(*weights: int) -> dict[str, object]:
        other = {"nodes": {f"127.0.0.1:{origins['b']}": 1}}
        choices = [{"weight": weights[0]}, {"upstream": other, "weight": weights[1]}]
        return {"rules": [{"weighted_upstreams": choices}]}

    write(gateway, origins, traffic_split=split(3, 1))

    with gateway.running():
        assert Counter(whom(port) for _ in range(40)) == {"a": 30, "b": 10}

        write(gateway, origins, traffic_split=split(0, 1))
        gateway.child.wait_until(
            lambda: {whom(port) for _ in range(4)} == {"b"}, what="everybody goes to the other one"
        )


def test_some_clients_go_elsewhere_and_the_upstream_may_be_another_object(
    gateway: Gateway, port: int, origins: dict[str, int]
) -> None:
    rule = {
        "match": [{"vars": [["remote_addr", "ipmatch", ["127.0.0.8/30"]]]}],
        "weighted_upstreams": [{"upstream_id": "b"}],
    }
    gateway.write_routes("u.yaml", upstreams=[{"id": "b", "nodes": {f"127.0.0.1:{origins['b']}": 1}}])
    write(gateway, origins, traffic_split={"rules": [rule]})

    with gateway.running():
        assert (whom_from("127.0.0.9", port), whom_from("127.0.0.1", port)) == ("b", "a")

        gateway.write_routes("u.yaml", upstreams=[{"id": "b", "nodes": {f"127.0.0.1:{origins['a']}": 1}}])
        gateway.child.wait_until(
            lambda: whom_from("127.0.0.9", port) == "a", what="the object's edit reaches the plugin's choice"
        )


def choose(*nodes: int, **fields: object) -> dict[str, object]:
    """Everybody goes to an upstream that the plugin's options describe."""
    upstream = {"nodes": {f"127.0.0.1:{port}": 1 for port in nodes}, **fields}
    return {"rules": [{"weighted_upstreams": [{"upstream": upstream}]}]}


def test_a_chosen_upstream_has_retries_of_its_own(
    gateway: Gateway, port: int, ports: Ports, origins: dict[str, int]
) -> None:
    dead = ports.take()
    write(gateway, origins, traffic_split=choose(dead, origins["b"]))

    with gateway.running():
        assert [whom(port) for _ in range(4)] == ["b"] * 4
        lines = gateway.child.wait_until(
            lambda: len(found := gateway.access_lines()) == 4 and found, what="four lines"
        )
        tried = [attempt["node"] for line in lines for attempt in line.get("attempts", [])]
        assert tried.count(f"127.0.0.1:{dead}") == 2

        write(gateway, origins, traffic_split=choose(dead, origins["b"], retries=0))
        gateway.child.wait_until(lambda: whom(port) == "", what="nobody is tried twice")
        assert Counter(whom(port) for _ in range(4)) == {"b": 2, "": 2}


def test_a_chosen_upstream_has_checks_of_its_own(
    gateway: Gateway, port: int, ports: Ports, origins: dict[str, int], tmp_path: Path
) -> None:
    dead = ports.take()
    split = choose(dead, origins["b"], retries=0, checks={"active": {"type": "tcp"}})
    write(gateway, origins, traffic_split=split)
    name = "/apisix/stream_routes/a/plugins/traffic-split/rules/0/weighted_upstreams/0"
    is_up = f'apisix_upstream_status{{ip="127.0.0.1",name="{name}",port="{dead}"}}'

    with gateway.running():
        gateway.wait_for_metric(is_up, 0)
        assert [whom(port) for _ in range(4)] == ["b"] * 4

        with named_origin(tmp_path, dead, "back"):
            gateway.wait_for_metric(is_up, 1)
            assert {whom(port) for _ in range(4)} == {"b", "back"}


def test_new_sessions_come_at_a_rate(gateway: Gateway, port: int, origins: dict[str, int]) -> None:
    write(gateway, origins, limit_rate={"rate": 0.01})

    with gateway.running():
        assert [whom(port) for _ in range(5)] == ["a", "", "", "", ""]
        assert whom_from("127.0.0.2", port) == "a"

        # An edit of something else does not begin the count anew.
        gateway.write_routes("other.yaml", stream_route("other", origins["b"], server_port=1))
        gateway.wait_for_objects("a", "other")
        assert whom(port) == ""


def test_a_fault_is_injected(gateway: Gateway, port: int, origins: dict[str, int]) -> None:
    write(gateway, origins, fault_injection={"abort": {"percentage": 50}, "delay": {"duration": 0.3}})

    with gateway.running():
        assert sorted(whom(port) for _ in range(4)) == ["", "", "a", "a"]

        def let_in() -> list[float]:
            return [line["duration_s"] for line in gateway.access_lines() if line["reason"] == "closed"]

        gateway.child.wait_until(lambda: len(let_in()) == 2, what="both that were let in have ended")
        assert min(let_in()) >= 0.3


def test_a_route_answers_by_itself(gateway: Gateway, port: int) -> None:
    plugins = {"echo": {"body": "hello from the gateway\n"}, "ip-restriction": {"blacklist": ["127.0.0.2"]}}
    gateway.write_routes("a.yaml", {"id": "a", "plugins": plugins})

    with gateway.running():
        assert whom(port) == "hello from the gateway"
        assert whom_from("127.0.0.2", port) == ""


def test_a_route_answers_inside_tls(gateway: Gateway, ports: Ports) -> None:
    port = ports.take()
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}])
    gateway.write_routes("a.yaml", {"id": "a", "plugins": {"echo": {"body": "hello inside\n"}}})
    gateway.write_routes("ssl.yaml", ssls=[{"id": "s", "sni": "a.test", **issue("a.test").fields()}])
    context = ssl.create_default_context(cadata=CA_PEM)

    with (
        gateway.running(),
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="a.test", suppress_ragged_eofs=False) as client,
    ):
        assert client.makefile("rb").read() == b"hello inside\n", "up to its close_notify"


def test_a_service_restricts_every_route_that_has_it(
    gateway: Gateway, port: int, origins: dict[str, int]
) -> None:
    service = {
        "id": "inside",
        "upstream": {"nodes": {f"127.0.0.1:{origins['a']}": 1}},
        "plugins": {"ip-restriction": {"whitelist": ["127.0.0.2"]}},
    }
    gateway.write_routes("a.yaml", {"id": "a", "service_id": "inside"}, services=[service])

    with gateway.running():
        assert (whom_from("127.0.0.2", port), whom(port)) == ("a", "")


def test_a_plugin_that_is_switched_off_rejects_the_settings_that_do_it(
    gateway: Gateway, port: int, origins: dict[str, int]
) -> None:
    write(gateway, origins, ip_restriction={"whitelist": ["127.0.0.2"]})

    with gateway.running():
        text = gateway.config.read_text()
        write_atomically(gateway.config, text + "stream_plugins: [limit-conn]\n")

        status = gateway.wait_for_status(
            lambda status: status["config"]["state"] == "rejected", what="rejected"
        )

        assert "unknown plugin [ip-restriction]" in str(status["config"]["problems"])
        assert (whom_from("127.0.0.2", port), whom(port)) == ("a", ""), "what ran runs on"
