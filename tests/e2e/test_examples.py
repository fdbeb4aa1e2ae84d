"""Every directory of examples/ runs as it is written: its files, its ports, the commands of its README and what they print.

A private network makes every port free, so that nothing has to be replaced. Pages are read as docs/testing.md says; a
block marked `text` is for people (how to get the server it needs), and stands for what SCENES starts.
"""

from __future__ import annotations

import contextlib
import getpass
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.support import servers
from tests.support.child import Child, find_program, running
from tests.support.gateway import PLAIN, STREAMGW
from tests.support.namespace import is_listening, private_network
from tests.support.page import Reader, Step, steps_of
from tests.support.servers import Prefix
from tests.support.udp_servers import is_receiving

pytestmark = [pytest.mark.slow, pytest.mark.servers]

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))


@attrs.frozen
class Scene:
    """A copy of one example, in a network of its own."""

    directory: Path
    logs: Path
    """Also the first directory of the page's PATH: see `_put_in_path`."""
    prefix: Prefix

    def steps(self) -> Iterator[Step]:
        return steps_of("README.md", (self.directory / "README.md").read_text())

    def reader(self, stack: contextlib.ExitStack) -> Reader:
        reader = Reader(self.directory, logs=self.logs, prefix=self.prefix, stack=stack)
        reader.path.insert(0, str(self.logs))
        return reader


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


@contextlib.contextmanager
def _web(scene: Scene) -> Iterator[object]:
    with _nginx(scene, "web.conf", 8080):
        yield None


@contextlib.contextmanager
def _tls_web(scene: Scene) -> Iterator[object]:
    """nginx reads its certificates when a client asks for one: they need not be there yet."""
    with _nginx(scene, "web.conf", 8442):
        yield None


@contextlib.contextmanager
def _dns(scene: Scene) -> Iterator[object]:
    program = find_program("dnsmasq", package="dnsmasq-base")
    command = [
        *scene.prefix,
        program,
        "--no-daemon",
        "--conf-file=dnsmasq.conf",
        f"--user={getpass.getuser()}",
    ]
    with running(command, log=scene.logs / "dnsmasq.log", cwd=scene.directory) as child:
        child.wait_until(lambda: is_receiving(5301, prefix=scene.prefix), what="receives")
        yield None


@contextlib.contextmanager
def _discovery(scene: Scene) -> Iterator[object]:
    program = find_program("dnsmasq", package="dnsmasq-base")
    user = f"--user={getpass.getuser()}"
    command = [*scene.prefix, program, "--no-daemon", "--conf-file=dnsmasq.conf", user]
    with (
        _nginx(scene, "nodes.conf", 8003),
        running(command, log=scene.logs / "dnsmasq.log", cwd=scene.directory) as child,
    ):
        child.wait_until(lambda: is_receiving(5301, prefix=scene.prefix), what="receives")
        yield None


@contextlib.contextmanager
def _syslog(scene: Scene) -> Iterator[object]:
    program = find_program("rsyslogd", package="rsyslog")
    command = [*scene.prefix, program, "-n", "-f", "rsyslog.conf", "-i", "NONE"]
    here = {"PWD": str(scene.directory)}
    with running(command, log=scene.logs / "rsyslog.log", cwd=scene.directory, env=here) as child:
        child.wait_until(lambda: is_receiving(5141, prefix=scene.prefix), what="receives")
        yield None


@contextlib.contextmanager
def _plugin(scene: Scene) -> Iterator[object]:
    """A `pip` that installs beside the gateway without asking an index, and a `streamgw` that finds what it installed."""
    site = scene.logs / "site"
    # Built by what the development environment has, into a directory of this test.
    aside = f"--no-index --no-deps --no-build-isolation --target {site} --root-user-action ignore"
    pip = f"PIP_DISABLE_PIP_VERSION_CHECK=1 {sys.executable} -m pip"
    (scene.logs / "pip").write_text(f'#!/bin/sh\nshift\n{pip} install {aside} "$@"\n')
    (scene.logs / "pip").chmod(0o755)
    plain = {**PLAIN, "PYTHONPATH": f"{PLAIN['PYTHONPATH']}:{site}"}
    environment = " ".join(f"{name}={value}" for name, value in plain.items())
    _put_in_path(scene.logs, "streamgw", f"env {environment} {' '.join(STREAMGW)}")
    with _nginx(scene, "web.conf", 8080):
        yield None


SCENES: Mapping[str, Callable[[Scene], contextlib.AbstractContextManager[object]]] = {
    "balancing": _nodes,
    "discovery": _discovery,
    "dns": _dns,
    "from-apisix": _redis,
    "from-nginx-stream": _nodes,
    "mysql": _mysql,
    "plugin": _plugin,
    "postgresql": _postgresql,
    "proxy-protocol": _proxy_protocol,
    "redis": _redis,
    "ssh": _ssh,
    "syslog": _syslog,
    "tls-mtls": _web,
    "tls-passthrough": _tls_web,
    "tls-termination": _web,
}
"""What a page takes for granted."""


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    directory = tmp_path / "example"
    shutil.copytree(EXAMPLES / request.param, directory)
    environment = " ".join(f"{name}={value}" for name, value in PLAIN.items())
    _put_in_path(tmp_path, "streamgw", f"env {environment} {' '.join(STREAMGW)}")
    with private_network(tmp_path) as prefix, SCENES[request.param](Scene(directory, tmp_path, prefix)):
        yield Scene(directory, tmp_path, prefix)


def test_every_directory_has_a_scene_and_a_line_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()

    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == NAMES == sorted(SCENES)
    assert all(f"({name}/README.md)" in index for name in NAMES)


@pytest.mark.parametrize("scene", NAMES, indirect=True)
def test_the_readme_does_what_it_says(scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        reader = scene.reader(stack)
        for step in scene.steps():
            reader.follow(step)


@pytest.mark.parametrize("scene", ["from-nginx-stream"], indirect=True)
def test_nginx_answers_what_the_gateway_answers(scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_nginx(scene, "nginx.conf", 9101))
        reader = scene.reader(stack)
        for step in scene.steps():
            if step.what.startswith(("for ", "curl ")):
                reader.follow(step)


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
