"""Files change while the gateway runs: new connections follow, old ones stay, broken files change nothing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.child import START_TIMEOUT_S, find_program, run
from tests.support.gateway import Gateway, Status, stream_route, write_atomically
from tests.support.origin import Visitor, named_origin, whom
from tests.support.ports import Ports

pytestmark = pytest.mark.slow

_EDITS_TIMED = 20
_TAKES_EFFECT_WITHIN_S = 0.2


@attrs.frozen
class Scene:
    """One listener; one route, to the origin alpha; another origin, beta."""

    gateway: Gateway
    port: int
    alpha: int
    beta: int

    def route_to(self, origin_port: int) -> None:
        self.gateway.write_routes("route.yaml", stream_route("1", origin_port))

    def wait_until_new_connections_reach(self, name: str) -> None:
        assert self.gateway.child is not None
        self.gateway.child.wait_until(lambda: whom(self.port) == name, what=f"connections reach {name!r}")


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(gateway, ports.take(), ports.take(), ports.take())
    gateway.write_settings([f"127.0.0.1:{scene.port}"])
    scene.route_to(scene.alpha)
    with named_origin(tmp_path, scene.alpha, "alpha"), named_origin(tmp_path, scene.beta, "beta"):
        yield scene


def test_an_edit_moves_new_connections_and_leaves_the_old_ones(scene: Scene) -> None:
    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        scene.route_to(scene.beta)

        scene.wait_until_new_connections_reach("beta")
        assert visitor.echo("still there?") == "still there?"


def test_an_edit_takes_effect_within_200_ms(scene: Scene) -> None:
    """A quarter of them at least: the machine may be busy at any other one."""
    elapsed_s = []

    with scene.gateway.running():
        for number in range(_EDITS_TIMED):
            port, name = [(scene.beta, "beta"), (scene.alpha, "alpha")][number % 2]
            scene.route_to(port)
            written_at = time.perf_counter()
            while whom(scene.port) != name:
                assert time.perf_counter() - written_at < START_TIMEOUT_S
            elapsed_s.append(time.perf_counter() - written_at)

    for of_one_kind in (elapsed_s[::2], elapsed_s[1::2]):  # as if every second one were missed
        assert sorted(of_one_kind)[len(of_one_kind) // 4] < _TAKES_EFFECT_WITHIN_S, elapsed_s


def test_a_deleted_file_takes_its_route_along_but_not_its_sessions(scene: Scene) -> None:
    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        (scene.gateway.routes / "route.yaml").unlink()

        scene.gateway.wait_for_objects()
        assert whom(scene.port) == ""
        assert visitor.echo("still there?") == "still there?"


def test_a_broken_edit_is_named_and_changes_nothing(scene: Scene) -> None:
    with scene.gateway.running():
        write_atomically(
            scene.gateway.routes / "broken.yaml",
            "stream_routes:\n  - id: 2\n    server_prot: 9100\n    upstream: {nodes: {'127.0.0.1:1995': 1}}\n",
        )

        status = scene.gateway.wait_for_status(
            lambda status: status["config"]["state"] == "rejected", what="the edit is rejected"
        )
        (problem,) = status["config"]["problems"]
        assert (problem["file"], problem["line"]) == ("routes.d/broken.yaml", 3)
        assert "server_prot" in f"{problem['pointer']} {problem['message']}"
        assert "server_port" in problem["message"], "the nearest known name"
        assert whom(scene.port) == "alpha"


def test_files_that_were_cut_off_take_nothing_away(scene: Scene) -> None:
    """A copy onto a full disk left nothing of config.yaml, and every listener was closed."""
    settings = scene.gateway.config.read_text()
    with scene.gateway.running():
        (scene.gateway.routes / "route.yaml").write_text("")
        scene.gateway.config.write_text("")

        status = scene.gateway.wait_for_status(
            lambda status: status["config"]["state"] == status["settings"]["state"] == "rejected",
            what="both are rejected",
        )
        for part in ("config", "settings"):
            assert "the file is empty" in status[part]["problems"][0]["message"]
        assert whom(scene.port) == "alpha"

        scene.route_to(scene.beta)
        write_atomically(scene.gateway.config, settings)
        scene.wait_until_new_connections_reach("beta")
        scene.gateway.wait_for_status(lambda status: status["settings"]["state"] == "applied", what="applied")


def test_nothing_of_a_change_is_applied_while_another_file_is_broken(scene: Scene) -> None:
    with scene.gateway.running():
        write_atomically(scene.gateway.routes / "broken.yaml", "stream_routes: 7\n")
        scene.gateway.wait_for_status(
            lambda status: status["config"]["state"] == "rejected", what="the edit is rejected"
        )

        scene.route_to(scene.beta)
        # Another mistake in the broken file: once that is known, the good file was read as well.
        write_atomically(scene.gateway.routes / "broken.yaml", "stream_routes: 8\n")

        scene.gateway.wait_for_status(
            lambda status: "got 8" in str(status["config"]["problems"]), what="the next state is rejected too"
        )
        assert whom(scene.port) == "alpha"

        (scene.gateway.routes / "broken.yaml").unlink()

        scene.wait_until_new_connections_reach("beta")
        assert scene.gateway.status()["config"]["state"] == "applied"


def _save_in_place(routes: Path, text: str) -> None:
    (routes / "route.yaml").write_text(text)


def _rename_into_place(routes: Path, text: str) -> None:
    write_atomically(routes / "route.yaml", text)


def _rename_in_a_new_directory(routes: Path, text: str) -> None:
    (routes / "route.yaml").unlink()
    write_atomically(routes / "team" / "databases" / "route.yaml", text)


def _replace_the_directory(routes: Path, text: str) -> None:
    old, new = routes.with_name("old"), routes.with_name("new")
    new.mkdir()
    (new / "route.yaml").write_text(text)
    routes.rename(old)
    new.rename(routes)
    shutil.rmtree(old)


def _swap_like_kubernetes(routes: Path, text: str) -> None:
    """A ConfigMap volume: files are links into `..data`, which is a link to a directory, swapped by rename."""
    (routes / "..2026_02").mkdir()
    (routes / "..2026_02" / "mounted.yaml").write_text(text)
    (routes / "..data_tmp").symlink_to("..2026_02")
    (routes / "..data_tmp").replace(routes / "..data")
    link = routes / "mounted.yaml"
    if not link.is_symlink():
        link.symlink_to("..data/mounted.yaml")
        (routes / "route.yaml").unlink()


def _check_out_with_git(routes: Path, text: str) -> None:
    git = find_program("git", package="git")
    me = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
    before = (routes / "route.yaml").read_text()

    def run_git(*words: str) -> None:
        run([git, *me, *words], cwd=routes)

    run_git("init", "--quiet")
    run_git("add", "route.yaml")
    run_git("commit", "--quiet", "--message", "before")
    run_git("branch", "before")
    (routes / "route.yaml").write_text(text)
    run_git("commit", "--quiet", "--all", "--message", "after")
    run_git("checkout", "--quiet", "before")
    assert (routes / "route.yaml").read_text() == before
    run_git("checkout", "--quiet", "main")


@pytest.mark.parametrize(
    "change",
    [
        _save_in_place,
        _rename_into_place,
        _rename_in_a_new_directory,
        _replace_the_directory,
        _swap_like_kubernetes,
        _check_out_with_git,
    ],
)
def test_every_way_of_changing_files_is_noticed(scene: Scene, change: Callable[[Path, str], None]) -> None:
    text = (scene.gateway.routes / "route.yaml").read_text()

    with scene.gateway.running():
        assert whom(scene.port) == "alpha"

        change(scene.gateway.routes, text.replace(f":{scene.alpha}", f":{scene.beta}"))

        scene.wait_until_new_connections_reach("beta")


def test_a_kubernetes_volume_is_followed_through_further_swaps(scene: Scene) -> None:
    text = (scene.gateway.routes / "route.yaml").read_text()
    _swap_like_kubernetes(scene.gateway.routes, text)

    with scene.gateway.running():
        assert whom(scene.port) == "alpha"
        routes = scene.gateway.routes
        (routes / "..2026_03").mkdir()
        (routes / "..2026_03" / "mounted.yaml").write_text(text.replace(f":{scene.alpha}", f":{scene.beta}"))
        (routes / "..data_tmp").symlink_to("..2026_03")
        (routes / "..data_tmp").replace(routes / "..data")

        scene.wait_until_new_connections_reach("beta")


def test_a_listener_that_is_added_accepts_at_once(scene: Scene, ports: Ports) -> None:
    another = ports.take()

    with scene.gateway.running():
        scene.gateway.write_settings([f"127.0.0.1:{scene.port}", f"127.0.0.1:{another}"])

        _wait_for_listeners(scene.gateway, scene.port, another)
        assert whom(another) == "alpha"
        assert whom(scene.port) == "alpha"


def test_a_listener_that_is_removed_refuses_but_keeps_its_sessions(scene: Scene, ports: Ports) -> None:
    another = ports.take()
    scene.gateway.write_settings([f"127.0.0.1:{scene.port}", f"127.0.0.1:{another}"])

    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        scene.gateway.write_settings([f"127.0.0.1:{another}"])

        _wait_for_listeners(scene.gateway, another)
        with pytest.raises(ConnectionRefusedError):
            whom(scene.port)
        assert visitor.echo("still there?") == "still there?"
        assert whom(another) == "alpha"


def test_a_listener_that_moves_leaves_its_sessions_alone(scene: Scene, ports: Ports) -> None:
    another = ports.take()

    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "alpha"

        scene.gateway.write_settings([f"127.0.0.1:{another}"])

        _wait_for_listeners(scene.gateway, another)
        assert whom(another) == "alpha"
        assert visitor.echo("still there?") == "still there?"


def test_a_listener_that_cannot_be_bound_rejects_the_whole_change(scene: Scene, ports: Ports) -> None:
    fine = ports.take()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as foreign:
        taken: int = foreign.getsockname()[1]

        with scene.gateway.running():
            scene.gateway.write_settings([f"127.0.0.1:{fine}", f"127.0.0.1:{taken}"])

            status = scene.gateway.wait_for_status(
                lambda status: status["settings"]["state"] == "rejected", what="the change is rejected"
            )
            assert str(taken) in str(status["settings"]["problems"])
            assert whom(scene.port) == "alpha", "the old listener stays"
            with pytest.raises(ConnectionRefusedError):
                whom(fine)


def test_broken_settings_are_rejected_and_named(scene: Scene) -> None:
    with scene.gateway.running():
        write_atomically(scene.gateway.config, "apisix:\n  stream_proxy:\n    tcp:\n      - 99999\n")

        status = scene.gateway.wait_for_status(
            lambda status: status["settings"]["state"] == "rejected", what="the change is rejected"
        )
        assert status["settings"]["problems"][0]["line"] == 4
        assert whom(scene.port) == "alpha"


def _wait_for_listeners(gateway: Gateway, *ports: int) -> None:
    """Wait until exactly these accept; others may still drain."""
    wanted = {f"tcp 127.0.0.1:{port}" for port in ports}

    def listening(status: Status) -> bool:
        return {item["name"] for item in status["listeners"] if item["state"] == "listening"} == wanted

    gateway.wait_for_status(listening, what=f"listening on {sorted(wanted)}")
