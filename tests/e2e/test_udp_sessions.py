"""UDP sessions as a user sees them: how long they live, where they go, and what becomes of them at an edit."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.datagrams import LARGEST, DatagramClient, datagram_flood, datagram_origin
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports

pytestmark = pytest.mark.slow


@attrs.frozen
class Scene:
    """One UDP listener; two origins, alpha and beta."""

    gateway: Gateway
    port: int
    alpha: int
    beta: int

    def client(self) -> DatagramClient:
        return DatagramClient(self.port)

    def route_to(self, *origins: int, id_: str = "1", **udp: object) -> None:
        upstream = {"type": "roundrobin", "nodes": {f"127.0.0.1:{port}": 1 for port in origins}}
        self.gateway.write_routes("route.yaml", {"id": id_, "udp": udp, "upstream": upstream})

    def wait_until_none_is_left(self) -> None:
        self.gateway.wait_for_status(lambda status: status["sessions"]["active"] == 0, what="no session")


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(gateway, ports.take_for_udp(), ports.take_for_udp(), ports.take_for_udp())
    gateway.write_settings([], [f"127.0.0.1:{scene.port}"])
    scene.route_to(scene.alpha)
    with datagram_origin(tmp_path, scene.alpha, "alpha"), datagram_origin(tmp_path, scene.beta, "beta"):
        yield scene


def test_a_bare_port_is_every_address_of_both_families(scene: Scene, ports: Ports) -> None:
    port = ports.take_for_udp()
    scene.gateway.write_settings([], [port])

    with scene.gateway.running():
        for host in ("127.0.0.1", "127.0.0.77", "::1"):
            with DatagramClient(port, host) as client:
                assert client.ask("hello") == "alpha hello"
        listeners = scene.gateway.status()["listeners"]

    assert [(each["name"], each["accepted"]) for each in listeners] == [(f"udp *:{port}", 3)]


def test_tcp_and_udp_share_a_port_number(scene: Scene) -> None:
    scene.gateway.write_settings([f"127.0.0.1:{scene.port}"], [f"127.0.0.1:{scene.port}"])

    with scene.gateway.running(), scene.client() as client:
        assert client.ask("hello") == "alpha hello"
        names = {each["name"] for each in scene.gateway.status()["listeners"]}

    assert names == {f"tcp 127.0.0.1:{scene.port}", f"udp 127.0.0.1:{scene.port}"}


def test_datagrams_of_every_size_keep_their_boundaries(scene: Scene) -> None:
    with scene.gateway.running(), scene.client() as client:
        for size in (0, 1, 1472, 1473, 9000, LARGEST - len("alpha ")):
            text = "x" * size
            assert client.ask(text) == f"alpha {text}"


def test_clients_take_turns_with_the_nodes_and_stay_with_theirs(scene: Scene) -> None:
    scene.route_to(scene.alpha, scene.beta)

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(scene.client()) for _ in range(4)]
        first = [client.ask("?") for client in clients]
        second = [client.ask("?") for client in clients]

    assert sorted(first) == ["alpha ?", "alpha ?", "beta ?", "beta ?"]
    assert second == first


def test_consistent_choice_takes_every_port_of_a_client_to_the_same_node(scene: Scene) -> None:
    nodes = {f"127.0.0.1:{port}": 1 for port in (scene.alpha, scene.beta)}
    upstream = {"type": "chash", "key": "remote_addr", "nodes": nodes}
    scene.gateway.write_routes("route.yaml", {"id": "1", "upstream": upstream})
    answers: dict[str, list[str]] = {f"127.0.0.{number}": [] for number in range(2, 34)}

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        for _ in range(3):
            for host, answered in answers.items():
                client = stack.enter_context(DatagramClient(scene.port, source=host))
                answered.append(client.ask("?"))

    firsts = {host: answered[0] for host, answered in answers.items()}
    assert answers == {host: [first] * 3 for host, first in firsts.items()}
    assert set(firsts.values()) == {"alpha ?", "beta ?"}


def test_a_session_ends_with_its_answers(scene: Scene) -> None:
    scene.route_to(scene.alpha, responses=1)

    with scene.gateway.running(), scene.client() as client:
        client.ask("one")
        client.ask("two")
        scene.wait_until_none_is_left()

    assert [line["reason"] for line in scene.gateway.access_lines()] == ["closed", "closed"]


def test_an_idle_session_ends(scene: Scene) -> None:
    scene.route_to(scene.alpha, idle_timeout=2)

    with scene.gateway.running(), scene.client() as client:
        client.ask("hello")
        line = scene.gateway.wait_for_access_line(lambda line: True, what="the session")

    assert line["reason"] == "idle_timeout"
    assert (line["bytes_up"], line["bytes_down"]) == (len("hello"), len("alpha hello"))


def test_every_so_many_datagrams_there_is_another_pick(scene: Scene) -> None:
    scene.route_to(scene.alpha, scene.beta, requests=2)

    with scene.gateway.running(), scene.client() as client:
        said = [client.ask("?").split()[0] for _ in range(6)]

    assert said[0] == said[1] != said[2] == said[3] != said[4] == said[5]


def test_the_client_is_announced_before_its_first_datagram_or_before_each(scene: Scene) -> None:
    upstream = {"nodes": {f"127.0.0.1:{scene.alpha}": 1}, "proxy_protocol": "v2"}
    scene.gateway.write_routes("route.yaml", {"id": "first", "upstream": upstream})

    with scene.gateway.running():
        with DatagramClient(scene.port) as client:
            first = _headers(client)
        each = {**upstream, "proxy_protocol_datagrams": "each"}
        scene.gateway.write_routes("route.yaml", {"id": "each", "upstream": each})
        scene.gateway.wait_for_objects("each")
        with DatagramClient(scene.port) as client:
            always = _headers(client)

    assert first == [True, False, False]
    assert always == [True, True, True]


def _headers(client: DatagramClient) -> list[bool]:
    """Whether each of three datagrams got to the origin with a PROXY header, family AF_INET over DGRAM, that names us."""
    port = client.sock.getsockname()[1].to_bytes(2)
    seen = []
    for _ in range(3):
        client.send("hello")
        said = client.sock.recv(LARGEST).removeprefix(b"alpha ")
        assert said.endswith(b"hello")
        signature, rest = said[:12], said[12:]
        seen.append(signature == b"\r\n\r\n\0\r\nQUIT\n" and rest[:2] == b"\x21\x12" and rest[12:14] == port)
    return seen


def test_an_edit_leaves_live_sessions_where_they_are(scene: Scene) -> None:
    with scene.gateway.running(), scene.client() as old, scene.client() as new:
        assert old.ask("?") == "alpha ?"
        scene.gateway.write_routes("route.yaml", stream_route("2", scene.beta))
        scene.gateway.wait_for_objects("2")

        assert new.ask("?") == "beta ?"
        assert old.ask("?") == "alpha ?"
        assert scene.gateway.status()["sessions"]["total"] == 2


def test_a_node_that_goes_away_gives_its_sessions_up(scene: Scene) -> None:
    upstreams = {
        name: [{"id": "u", "nodes": {f"127.0.0.1:{port}": 1 for port in origins}}]
        for name, origins in {"alpha": [scene.alpha], "beta": [scene.beta]}.items()
    }
    scene.gateway.write_routes("route.yaml", {"id": "1", "upstream_id": "u"}, upstreams=upstreams["alpha"])

    with scene.gateway.running(), scene.client() as client:
        assert client.ask("?") == "alpha ?"
        before = scene.gateway.status()["config"]["revision"]
        scene.gateway.write_routes("route.yaml", {"id": "1", "upstream_id": "u"}, upstreams=upstreams["beta"])
        scene.gateway.wait_for_status(
            lambda status: status["config"]["revision"] != before, what="another revision"
        )

        assert client.ask("?") == "beta ?"
        line = scene.gateway.wait_for_access_line(lambda line: True, what="the old session")

    assert (line["reason"], line["node"]) == ("moved", f"127.0.0.1:{scene.alpha}")


def test_a_node_that_refuses_is_left_for_another(scene: Scene, ports: Ports) -> None:
    """Whichever of the two is picked first, the client gets its answer at the latest at its second try."""
    scene.route_to(ports.take_for_udp(), scene.beta)

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(scene.client()) for _ in range(4)]
        for client in clients:
            client.send("first")
        refused = scene.gateway.wait_for_status(
            lambda status: status["sessions"]["by_reason"].get("connect_failed", 0) >= 2, what="two refusals"
        )
        said = set()
        for client in clients:
            client.send("second")
            while "second" not in (answer := client.answer()):
                assert answer == "beta first"
            said.add(answer)

    assert refused["sessions"]["by_reason"]["connect_failed"] == 2
    assert said == {"beta second"}


def test_a_datagram_without_a_route_is_dropped_and_counted(scene: Scene) -> None:
    scene.gateway.write_routes("route.yaml", stream_route("1", scene.alpha, remote_addr="192.0.2.1"))

    with scene.gateway.running(), scene.client() as client:
        client.send("hello")
        status = scene.gateway.wait_for_status(
            lambda status: status["listeners"][0]["dropped"], what="a datagram dropped"
        )

    assert status["listeners"][0]["dropped"] == {"no_route": 1}
    assert status["sessions"]["total"] == 0


def test_a_listener_takes_only_so_many_sessions(scene: Scene) -> None:
    """All of one client's sessions are young and unanswered: the oldest makes way."""
    scene.gateway.write_settings([], [{"addr": f"127.0.0.1:{scene.port}", "max_sessions": 2}])

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(scene.client()) for _ in range(3)]
        for client in clients:
            assert client.ask("?") == "alpha ?"
        status = scene.gateway.wait_for_status(
            lambda status: status["sessions"]["by_reason"].get("evicted"), what="an eviction"
        )

    assert status["sessions"]["active"] == 2
    assert status["sessions"]["by_reason"]["evicted"] == 1


def test_one_client_begins_only_so_many_sessions_at_once(scene: Scene) -> None:
    limits = {"limits": {"udp_session_rate_per_client": 2}}
    access_log = {"access_log": {"path": str(scene.gateway.access_log)}}
    scene.gateway.write_settings([], [f"127.0.0.1:{scene.port}"], streamgw={**limits, **access_log})

    with scene.gateway.running(), contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(scene.client()).send("hello")
        status = scene.gateway.wait_for_status(
            lambda status: (
                status["sessions"]["total"] + sum(status["listeners"][0]["dropped"].values()) == 10
            ),
            what="ten datagrams",
        )

    assert set(status["listeners"][0]["dropped"]) == {"client_rate"}
    assert 2 <= status["sessions"]["total"] < 10


def test_a_client_that_may_be_forged_gets_no_more_than_it_sent(scene: Scene) -> None:
    scene.route_to(scene.alpha, amplification=1)

    with scene.gateway.running(), scene.client() as client:
        client.send("hello")
        status = scene.gateway.wait_for_status(
            lambda status: status["listeners"][0]["dropped"], what="an answer dropped"
        )
        client.sock.setblocking(False)

        assert status["listeners"][0]["dropped"] == {"amplification": 1}
        with pytest.raises(BlockingIOError):
            client.answer()


def test_a_flood_from_one_client_does_not_starve_the_others(
    scene: Scene, ports: Ports, tmp_path: Path
) -> None:
    """What does not fit into the receive buffer is lost whoever sent it; who asks again, as resolvers do, is served."""
    questions = 50
    nobody = ports.take_for_udp()
    scene.gateway.write_routes(
        "route.yaml", stream_route("flood", nobody, remote_addr="127.0.0.7"), stream_route("1", scene.alpha)
    )

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", nobody))
        with scene.gateway.running() as child:
            with datagram_flood(tmp_path, scene.port, source="127.0.0.7"), scene.client() as client:
                for number in range(questions):
                    assert client.ask_again(f"question {number}", every_s=0.25) == f"alpha question {number}"
            child.send_signal(signal.SIGTERM)
            assert child.wait() == 0

    sent = {line["route"]: line["datagrams_up"] for line in scene.gateway.access_lines()}
    assert questions <= sent["1"] < sent["flood"]


def test_a_listener_that_is_removed_leaves_its_sessions_alone(scene: Scene, ports: Ports) -> None:
    with scene.gateway.running(), scene.client() as client:
        assert client.ask("before") == "alpha before"
        other = ports.take_for_udp()
        scene.gateway.write_settings([], [f"127.0.0.1:{other}"])
        scene.gateway.wait_for_status(
            lambda status: f"udp 127.0.0.1:{other}" in {each["name"] for each in status["listeners"]},
            what="the other listener",
        )

        assert client.ask("after") == "alpha after"
        with DatagramClient(other) as newcomer:
            assert newcomer.ask("new") == "alpha new"


def test_a_listener_widened_to_every_address_goes_on_serving_its_clients(scene: Scene) -> None:
    """Two UDP sockets cannot share an address: sessions of the narrow one end, their clients notice nothing."""
    with scene.gateway.running(), scene.client() as client:
        assert client.ask("before") == "alpha before"
        scene.gateway.write_settings([], [scene.port])
        scene.gateway.wait_for_status(
            lambda status: [each["name"] for each in status["listeners"]] == [f"udp *:{scene.port}"],
            what="the wide listener",
        )

        assert client.ask("after") == "alpha after"
        line = scene.gateway.wait_for_access_line(lambda line: True, what="the old session")

    assert (line["reason"], line["listener"]) == ("moved", f"udp 127.0.0.1:{scene.port}")


def test_an_address_that_is_taken_changes_nothing(scene: Scene, ports: Ports) -> None:
    other = ports.take_for_udp()

    with scene.gateway.running(), scene.client() as client:
        assert client.ask("before") == "alpha before"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("127.0.0.1", other))
            scene.gateway.write_settings([], [f"127.0.0.1:{other}"])
            status = scene.gateway.wait_for_status(
                lambda status: status["settings"]["state"] == "rejected", what="a rejection"
            )

        assert client.ask("after") == "alpha after"

    (problem,) = status["settings"]["problems"]
    assert problem["message"] == f"cannot listen on udp 127.0.0.1:{other}: address already in use"
    assert [each["name"] for each in status["listeners"]] == [f"udp 127.0.0.1:{scene.port}"]


def test_a_drain_lets_live_sessions_go_on_until_they_are_idle(scene: Scene) -> None:
    scene.gateway.write_settings(
        [], [f"127.0.0.1:{scene.port}"], nginx_config={"worker_shutdown_timeout": 60}
    )
    scene.route_to(scene.alpha, idle_timeout=5)

    with scene.gateway.running() as child, scene.client() as client:
        assert client.ask("one") == "alpha one"
        child.send_signal(signal.SIGTERM)
        child.wait_for_line("draining")
        assert client.ask("two") == "alpha two"
        assert child.wait() == 0

    assert [(line["reason"], line["datagrams_up"]) for line in scene.gateway.access_lines()] == [
        ("idle_timeout", 2)
    ]
