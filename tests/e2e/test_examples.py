"""Every directory of examples/ runs as it is written: its files, its ports, the commands of its README and what they print.

A private network makes every port free, so that nothing has to be replaced. Pages are read as docs/testing.md says; a
block marked `text` is for people (how to get the server it needs), and stands for what SCENES starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.support import servers
from tests.support.child import Child, find_program, run, running, wait_until
from tests.support.gateway import PLAIN, STREAMGW
from tests.support.namespace import is_listening, private_network
from tests.support.servers import Prefix
from tests.test_docs import Step, is_like, steps_of

pytestmark = [pytest.mark.slow, pytest.mark.servers]

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))
STATUS_URL = "http://127.0.0.1:7085/streamgw/v1/status"


@attrs.frozen
class Scene:
    """A copy of one example, in a network of its own."""

    directory: Path
    logs: Path
    """Also the first directory of the page's PATH: see `_put_in_path`."""
    prefix: Prefix


def _mysql(scene: Scene) -> contextlib.AbstractContextManager[object]:
    return servers.mariadb(scene.logs, 3306, prefix=scene.prefix)


def _postgresql(scene: Scene) -> contextlib.AbstractContextManager[object]:
    return servers.postgresql(5432, prefix=scene.prefix)


def _redis(scene: Scene) -> contextlib.AbstractContextManager[object]:
    return servers.redis(scene.logs, 6379, prefix=scene.prefix)


@contextlib.contextmanager
def _ssh(scene: Scene) -> Iterator[object]:
    """An SSH server, and an `ssh` that knows the key: what the reader's ~/.ssh is for."""
    with servers.sshd(scene.logs, 22, prefix=scene.prefix) as server:
        words = server.client(port=0)
        options = " ".join(words[1 : words.index("-p")] + words[words.index("-p") + 2 : -1])
        _put_in_path(scene.logs, "ssh", f"{words[0]} {options} -o LogLevel=INFO")
        yield server


def _put_in_path(directory: Path, name: str, command: str) -> None:
    """A program of that name for the page's shell."""
    program = directory / name
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@contextlib.contextmanager
def _nodes(scene: Scene) -> Iterator[object]:
    with _nginx(scene, "nodes.conf", 8003):
        yield None


@contextlib.contextmanager
def _proxy_protocol(scene: Scene) -> Iterator[object]:
    haproxy = find_program("haproxy", package="haproxy")
    command = [*scene.prefix, haproxy, "-db", "-f", "haproxy.cfg"]
    with (
        _nginx(scene, "web.conf", 8080),
        running(command, log=scene.logs / "haproxy.log", cwd=scene.directory) as child,
    ):
        _wait_for_port(child, 9000, scene)
        yield None


SCENES: Mapping[str, Callable[[Scene], contextlib.AbstractContextManager[object]]] = {
    "balancing": _nodes,
    "from-apisix": _redis,
    "from-nginx-stream": _nodes,
    "mysql": _mysql,
    "postgresql": _postgresql,
    "proxy-protocol": _proxy_protocol,
    "redis": _redis,
    "ssh": _ssh,
}
"""What a page takes for granted."""


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    directory = tmp_path / "example"
    shutil.copytree(EXAMPLES / request.param, directory)
    _put_in_path(tmp_path, "streamgw", " ".join(STREAMGW))
    with private_network(tmp_path) as prefix, SCENES[request.param](Scene(directory, tmp_path, prefix)):
        yield Scene(directory, tmp_path, prefix)


def test_every_directory_has_a_scene_and_a_line_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()

    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == NAMES == sorted(SCENES)
    assert all(f"({name}/README.md)" in index for name in NAMES)


@pytest.mark.parametrize("scene", NAMES, indirect=True)
def test_the_readme_does_what_it_says(scene: Scene) -> None:
    page = scene.directory / "README.md"

    with contextlib.ExitStack() as stack:
        for step in steps_of(page.name, page.read_text()):
            if step.what == "streamgw run":
                stack.enter_context(_streamgw(scene))
            else:
                _type(scene, step)


@pytest.mark.parametrize("scene", ["from-nginx-stream"], indirect=True)
def test_nginx_answers_what_the_gateway_answers(scene: Scene) -> None:
    page = scene.directory / "README.md"

    with _nginx(scene, "nginx.conf", 9101):
        for step in steps_of(page.name, page.read_text()):
            if step.what.startswith(("for ", "curl ")):
                _type(scene, step)


@contextlib.contextmanager
def _streamgw(scene: Scene) -> Iterator[None]:
    command = [*scene.prefix, *STREAMGW, "run"]
    with running(
        command, log=scene.logs / "streamgw.log", cwd=scene.directory, env=PLAIN, name="streamgw"
    ) as child:
        child.wait_until(lambda: _status(scene), what="answers on its status endpoint")
        try:
            yield
        finally:
            child.kill()  # no drain: the page is over


@contextlib.contextmanager
def _nginx(scene: Scene, config: str, port: int) -> Iterator[None]:
    """Run nginx on a configuration that is part of the example."""
    program = find_program("nginx", package="nginx libnginx-mod-stream")
    command = [*scene.prefix, program, "-p", ".", "-c", config]
    with running(command, log=scene.logs / f"{config}.log", cwd=scene.directory, name="nginx") as child:
        _wait_for_port(child, port, scene)
        yield


def _wait_for_port(child: Child, port: int, scene: Scene) -> None:
    child.wait_until(lambda: is_listening(port, prefix=scene.prefix), what=f"listens on port {port}")


def _type(scene: Scene, step: Step) -> None:
    """Run one command as the reader would; an edit has taken effect when this returns."""
    before, files = _status(scene), _files(scene)
    path = os.pathsep.join([str(scene.logs), os.environ["PATH"]])
    env = {**PLAIN, "PATH": path, "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    done = run(
        [*scene.prefix, "bash", "-c", f"exec 2>&1; {step.what}"], cwd=scene.directory, env=env, check=False
    )
    assert done.returncode == 0, f"{step}\nexit {done.returncode}\n{done.stdout}"
    if step.text:
        assert is_like(done.stdout, step.text), f"{step}\nprinted\n{done.stdout}\ninstead of\n{step.text}"
    if before and _files(scene) != files:
        wait_until(lambda: _status(scene) != before, what=f"effect of {step}", timeout_s=5)


def _status(scene: Scene) -> Mapping[str, int]:
    """How often each half of the configuration was applied or rejected; empty while no gateway answers."""
    curl = find_program("curl", package="curl")
    done = run([*scene.prefix, curl, "--silent", "--fail", STATUS_URL], check=False)
    if done.returncode != 0:
        return {}
    status = json.loads(done.stdout)
    return {half: status[half]["reloads"] + status[half]["rejected"] for half in ("config", "settings")}


def _files(scene: Scene) -> dict[Path, bytes]:
    watched = [*scene.directory.glob("conf/*"), *scene.directory.glob("routes.d/**/*.yaml")]
    return {path: path.read_bytes() for path in watched}
