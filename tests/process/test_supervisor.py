"""The gateway as a process: how it starts, follows its settings, obeys signals, and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import yaml
from structlog.testing import capture_logs

from streamgw.config.settings import Settings, load_settings
from streamgw.process import supervisor, systemd, takeover
from streamgw.process.crew import OneWorker
from streamgw.process.demo import serve_upstreams
from streamgw.process.supervisor import Supervisor
from tests.support.child import wait_until
from tests.support.gateway import PLAIN, READY_S, STREAMGW, Gateway, stream_route, write_atomically
from tests.support.ports import Ports
from tests.support.worker import says, write_routes
from tests.support.workers import SLOW_S, children, is_alive

pytestmark = pytest.mark.slow


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of an upstream that answers lines."""
    program = (
        "import trio, functools; from streamgw.process.demo import serve_upstreams as s; "
        "trio.run(s, (int(__import__('sys').argv[1]),))"
    )
    with Ports() as ports:
        port = ports.take()
        child = subprocess.Popen([sys.executable, "-c", program, str(port)], env={**os.environ, **PLAIN})
        wait_until(lambda: reachable(port), what="the upstream answers")
        yield port
        child.terminate()
        child.wait()


@pytest.fixture
def gateway(tmp_path: Path, ports: Ports) -> Gateway:
    return Gateway(tmp_path / "gw", ports)


def reachable(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


def workers(pid: int) -> Iterator[int]:
    """Of the gateway: those whose program runs."""
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"streamgw.process.child" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                yield child


def successors(pid: int) -> Iterator[int]:
    """Of the gateway: those whose program runs. One that is stopped before would keep whoever starts it waiting (vfork)."""
    for child in children(pid):
        with contextlib.suppress(OSError):
            if takeover.VARIABLE.encode() in Path(f"/proc/{child}/environ").read_bytes():
                yield child


def ask(port: int, line: bytes = b"hi\n") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(line)
        return sock.makefile("rb").readline()


def start_and_fail(gateway: Gateway) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STREAMGW, "run"],
        cwd=gateway.directory,
        env={**os.environ, **PLAIN},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_broken_route_at_the_start_exits_78_and_says_where(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings([ports.take()])
    (gateway.routes / "mysql.yaml").write_text("stream_routes:\n  - id: 1\n    server_port: '80'\n")

    done = start_and_fail(gateway)

    assert done.returncode == 78
    assert (
        "routes.d/mysql.yaml:3:18 stream_routes[0].server_port: expected an integer 1–65535, got '80'"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_broken_config_at_the_start_exits_78(gateway: Gateway) -> None:
    gateway.config.write_text("apisix:\n  stream_proxi:\n    tcp: [9100]\n")

    done = start_and_fail(gateway)

    assert done.returncode == 78
    assert "conf/config.yaml:2:3" in done.stderr
    assert "stream_proxy" in done.stderr


def test_a_taken_port_at_the_start_exits_78(gateway: Gateway) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        gateway.write_settings([f"127.0.0.1:{port}"])

        done = start_and_fail(gateway)

    assert done.returncode == 78
    assert f"cannot listen on tcp 127.0.0.1:{port}: address already in use" in done.stderr


def test_a_taken_status_port_exits_78(gateway: Gateway, ports: Ports) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        gateway.status_port = stranger.getsockname()[1]
        gateway.write_settings([ports.take()])

        done = start_and_fail(gateway)

    assert done.returncode == 78
    assert "apisix.status: cannot listen on" in done.stderr


def test_listeners_follow_the_file_and_a_bad_file_changes_nothing(
    gateway: Gateway, ports: Ports, echo: int
) -> None:
    first, second = ports.take(), ports.take()
    gateway.write_settings([first])
    gateway.write_routes("echo.yaml", stream_route("echo", echo))
    with gateway.running() as child:
        assert ask(first).startswith(b"upstream")

        gateway.write_settings([second])
        child.wait_until(lambda: reachable(second), what="the new listener")
        assert ask(second).startswith(b"upstream")
        child.wait_until(lambda: not reachable(first), what="the old listener is closed")

        gateway.write_settings(["127.0.0.1:99999"])
        status = gateway.wait_for_status(lambda s: s["settings"]["state"] == "rejected", what="rejected")
        assert "99999" in str(status["settings"]["problems"])
        assert ask(second).startswith(b"upstream")

        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            taken = stranger.getsockname()[1]
            gateway.write_settings([first, f"127.0.0.1:{taken}"])
            gateway.wait_for_status(
                lambda s: any("address already in use" in p["message"] for p in s["settings"]["problems"]),
                what="told",
            )
            assert not reachable(first), "nothing partial is applied"

        gateway.write_settings([second])
        gateway.wait_for_status(lambda s: s["settings"]["state"] == "applied", what="taken back")


def test_what_needs_a_restart_is_said(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings([ports.take()])
    with gateway.running():
        gateway.write_settings([ports.take()], streamgw={"resolver": {"min_ttl_s": 7}})

        status = gateway.wait_for_status(lambda s: s["settings"]["reloads"] == 1, what="applied")

    assert [w["pointer"] for w in status["settings"]["warnings"] if "next start" in w["message"]] == [
        "streamgw.resolver"
    ]


def test_what_needs_a_restart_is_said_for_as_long_as_it_is_true(gateway: Gateway, ports: Ports) -> None:
    first, second, elsewhere = ports.take(), ports.take(), ports.take()
    waiting = {
        "plugin_attr": {"prometheus": {"export_addr": {"port": elsewhere}}},
        "streamgw": {"access_log": {"path": str(gateway.access_log)}, "workers": 3},
    }
    gateway.write_settings([first])
    with gateway.running():

        def pointers(reloads: int) -> list[str]:
            status = gateway.wait_for_status(lambda s: s["settings"]["reloads"] == reloads, what="applied")
            return [w["pointer"] for w in status["settings"]["warnings"] if "next start" in w["message"]]

        gateway.write_settings([first], **waiting)
        assert pointers(1) == ["plugin_attr.prometheus", "streamgw.workers"]

        gateway.write_settings([second], **waiting)
        assert pointers(2) == ["plugin_attr.prometheus", "streamgw.workers"], (
            "another edit changes nothing in that"
        )

        gateway.write_settings([second])
        assert pointers(3) == [], "that is what runs"


def test_term_drains_and_a_second_one_ends_at_once(gateway: Gateway, ports: Ports, echo: int) -> None:
    port = ports.take()
    gateway.write_settings([port])
    gateway.write_routes("echo.yaml", stream_route("echo", echo))
    with gateway.running() as child, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"hi\n")
        reader = client.makefile("rb")
        assert reader.readline().startswith(b"upstream")

        child.send_signal(signal.SIGTERM)
        child.wait_until(lambda: not reachable(port), what="accepting has stopped")
        client.sendall(b"still here\n")
        assert reader.readline().endswith(b"still here\n")

        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    assert [line["reason"] for line in gateway.access_lines() if line["bytes_up"]] == ["drain"]


def test_a_drain_without_sessions_is_over_at_once(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings([ports.take()])
    with gateway.running() as child:
        child.send_signal(signal.SIGINT)

        assert child.wait() == 0


def test_whoever_wants_an_end_need_not_wait_until_every_worker_has_loaded(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    gateway.write_settings([ports.take()], streamgw={"workers": 2})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with gateway.running(prefix=["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}"], wait=False) as child:
            worker = wait_until(lambda: next(workers(child.pid), None), what="a worker starts")
            os.kill(worker, signal.SIGSTOP)
            child.send_signal(signal.SIGTERM)

            assert child.wait(timeout_s=SLOW_S) == 0
            assert not is_alive(worker)
        assert "ready" not in child.output()
        assert manager.recv(100) == b"STOPPING=1"
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_hup_looks_again_and_usr1_reopens_the_access_log(gateway: Gateway, ports: Ports, echo: int) -> None:
    port = ports.take()
    gateway.write_settings([port])
    gateway.write_routes("echo.yaml", stream_route("echo", echo))
    with gateway.running() as child:
        ask(port)
        gateway.wait_for_access_line(lambda _: True, what="the first")

        gateway.access_log.rename(gateway.access_log.with_suffix(".1"))
        child.send_signal(signal.SIGUSR1)
        child.wait_until(gateway.access_log.exists, what="a new access log")
        ask(port)
        gateway.wait_for_access_line(lambda _: True, what="the second")

        child.send_signal(signal.SIGHUP)
        ask(port)


def test_whoever_wants_an_end_is_heard_during_an_upgrade(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings([ports.take()])
    with gateway.running() as child:
        child.send_signal(signal.SIGUSR2)
        successor = wait_until(lambda: next(successors(child.pid), None), what="the new gateway starts")
        os.kill(successor, signal.SIGSTOP)
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)

        assert child.wait(timeout_s=SLOW_S) == 0
        assert not is_alive(successor)


def test_a_service_manager_is_told_and_its_sockets_are_used(
    gateway: Gateway, tmp_path: Path, echo: int
) -> None:
    with socket.socket() as given, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        given.bind(("127.0.0.1", 0))
        given.listen()
        port = given.getsockname()[1]
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_S)
        gateway.write_settings([f"127.0.0.1:{port}"])
        gateway.write_routes("echo.yaml", stream_route("echo", echo))
        shell = f'exec 3<&{given.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        child = subprocess.Popen(
            ["bash", "-c", shell, "-", *STREAMGW, "run"],
            cwd=gateway.directory,
            env={**os.environ, **PLAIN, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=(given.fileno(),),
        )
        try:
            assert manager.recv(100) == b"READY=1"
            assert ask(port).startswith(b"upstream")
            child.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert child.wait(SLOW_S) == 0
        finally:
            child.kill()
            child.wait()


# The HTTP side

ADMIN = {"admin_key": [{"name": "admin", "key": "", "role": "admin"}]}


def admin_status(port: int, key: str) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/apisix/admin/stream_routes", headers={"X-API-KEY": key}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


def key_in(gateway: Gateway) -> str:
    keys = yaml.safe_load(gateway.config.read_text())["deployment"]["admin"]["admin_key"]
    return str(keys[0]["key"])


def test_an_empty_admin_key_is_made_at_the_start_and_keys_change_live(gateway: Gateway, ports: Ports) -> None:
    port = ports.take()
    admin = {**ADMIN, "admin_listen": {"port": port}}
    gateway.write_settings([ports.take()], deployment={"admin": admin})
    with gateway.running() as child:
        made = key_in(gateway)
        assert len(made) == 32
        assert admin_status(port, made) == 200
        assert admin_status(port, "wrong") == 401
        log = (gateway.directory / "streamgw.log").read_text()
        assert "admin_keys_made" in log
        assert made not in log

        given = {**admin, "admin_key": [{"name": "admin", "key": "mine", "role": "admin"}]}
        gateway.write_settings([ports.take()], deployment={"admin": given})
        child.wait_until(lambda: admin_status(port, "mine") == 200, what="the new key works")
        assert admin_status(port, made) == 401

        gateway.write_settings([ports.take()], deployment={"admin": admin})
        child.wait_until(lambda: key_in(gateway) not in {"", "mine"}, what="the empty key is filled in")
        child.wait_until(lambda: admin_status(port, key_in(gateway)) == 200, what="it works")


@pytest.mark.parametrize(
    ("admin", "said"),
    [
        ({"admin_key": 5}, "deployment.admin.admin_key: expected a list, got 5"),
        (
            {"admin_key_required": False, "admin_listen": {"ip": "0.0.0.0"}, "allow_admin": []},
            "deployment.admin.admin_key_required: missing valid Admin API token: ",
        ),
        (
            {"admin_key": [{"name": "a", "key": "${{NOTHING:=}}", "role": "admin"}]},
            "deployment.admin.admin_key[0].key: expected text",
        ),
        (
            {"admin_key": []},
            "deployment.admin.admin_key: missing valid Admin API token: there is no key, or an empty one",
        ),
        ({"https_admin": True}, "deployment.admin.https_admin: missing ssl cert for https admin"),
        (
            {
                **ADMIN,
                "https_admin": True,
                "admin_api_mtls": {"admin_ssl_cert": "no.pem", "admin_ssl_cert_key": "no.pem"},
            },
            "deployment.admin.admin_api_mtls: not good: ",
        ),
    ],
)
def test_an_admin_api_that_would_be_open_or_broken_exits_78(
    gateway: Gateway, ports: Ports, admin: dict[str, object], said: str
) -> None:
    gateway.write_settings(
        [ports.take()], deployment={"admin": {"admin_listen": {"port": ports.take()}} | admin}
    )

    done = start_and_fail(gateway)

    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_admin_keys_of_any_shape_are_a_problem_with_a_place_and_nobodys_end(
    gateway: Gateway, ports: Ports, echo: int
) -> None:
    port = ports.take()
    gateway.write_settings([port])
    gateway.write_routes("echo.yaml", stream_route("echo", echo))
    good = gateway.config.read_text()
    line = good.count("\n") + 1
    wrong = {
        "5": f"{line}:33 deployment.admin.admin_key: expected a list, got 5",
        "[{name: a, key: [], role: admin}]": f"{line}:49 deployment.admin.admin_key[0].key: expected text",
        "[{key}]": f"{line}:35 deployment.admin.admin_key[0].key: is empty, and cannot be filled in",
        "[&a {name: a, key: '', role: admin}, *a]": (
            f"{line}:70 deployment.admin.admin_key[1].key: is empty, and cannot be filled in"
        ),
        "[{<<: {name: a, key: '', role: admin}}]": (
            f"{line}:34 deployment.admin.admin_key[0].key: is empty, and cannot be filled in"
        ),
    }
    with gateway.running() as child, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        reader = client.makefile("rb")
        for rejected, (keys, said) in enumerate(wrong.items(), 1):
            write_atomically(gateway.config, f"{good}deployment: {{admin: {{admin_key: {keys}}}}}\n")

            child.wait_for_line(f"conf/config.yaml:{said}")
            gateway.wait_for_status(lambda s, n=rejected: s["settings"]["rejected"] == n, what="rejected")
            client.sendall(b"still here\n")
            assert reader.readline().endswith(b"still here\n")

        write_atomically(gateway.config, good)
        gateway.wait_for_status(lambda s: s["settings"]["state"] == "applied", what="taken back")
        assert "settings_bug" not in child.output()


def test_a_new_place_for_the_admin_api_needs_a_restart_and_a_new_allow_list_does_not(
    gateway: Gateway, ports: Ports
) -> None:
    port, elsewhere, listener = ports.take(), ports.take(), ports.take()
    admin = {"admin_key": [{"name": "admin", "key": "mine", "role": "admin"}]}
    gateway.write_settings([listener], deployment={"admin": {**admin, "admin_listen": {"port": port}}})
    with gateway.running() as child:
        changed = {**admin, "admin_listen": {"port": elsewhere}, "allow_admin": ["192.0.2.0/24"]}
        gateway.write_settings([listener], deployment={"admin": changed})

        status = gateway.wait_for_status(lambda s: s["settings"]["reloads"] == 1, what="applied")

        assert [w["pointer"] for w in status["settings"]["warnings"]] == ["deployment.admin"]
        child.wait_until(lambda: admin_status(port, "mine") == 403, what="the allow list counts")
        assert not reachable(elsewhere)


def test_a_reload_asked_for_over_http_looks_at_both(gateway: Gateway, ports: Ports, echo: int) -> None:
    first, second = ports.take(), ports.take()
    gateway.write_settings([first], streamgw={"reload": {"relook_s": 3600}})
    gateway.write_routes("echo.yaml", stream_route("echo", echo))
    with gateway.running() as child:
        gateway.write_settings([second], streamgw={"reload": {"relook_s": 3600}})
        request = urllib.request.Request(f"http://127.0.0.1:{gateway.control_port}/v1/reload", method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 202

        child.wait_until(lambda: reachable(second), what="the new listener")


def test_a_slow_reader_of_metrics_does_not_keep_it_from_ending(gateway: Gateway, ports: Ports) -> None:
    gateway.write_settings([ports.take()])
    with gateway.running() as child, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.connect(("127.0.0.1", gateway.metrics_port))
        slow.sendall(b"GET /apisix/prometheus/metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 400)

        child.send_signal(signal.SIGINT)

        # Not as long as a client may stand still (`Bounds.stall_timeout_s`).
        assert child.wait(timeout_s=20) == 0


# In this process

WITHOUT_HTTP = """\
apisix:
  enable_control: false
  stream_proxy: {{tcp: ["127.0.0.1:{port}"]}}
nginx_config: {{worker_shutdown_timeout: 0}}
plugin_attr: {{prometheus: {{enable_export_server: false}}}}
streamgw:
  enable_status: false
  access_log: {{path: {directory}/access.log}}
  reload: {{settle_ms: 10}}
"""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a service manager is told."""
    states: list[str] = []
    monkeypatch.setattr(systemd, "notify", states.append)
    monkeypatch.setattr(supervisor, "settle", lambda: None)  # the tests' own process goes on
    return states


def write_gateway(directory: Path, port: int) -> Supervisor:
    (directory / "routes.d").mkdir()
    config = directory / "config.yaml"
    config.write_text(WITHOUT_HTTP.format(port=port, directory=directory))
    return Supervisor(load_settings(config, environ={}), config, directory / "routes.d")


@contextlib.asynccontextmanager
async def running(gateway: Supervisor) -> AsyncIterator[None]:
    accepts = trio.Event()

    async def beside(_: Supervisor) -> None:
        await trio.lowlevel.checkpoint()
        accepts.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.run, beside)
        await accepts.wait()
        yield
        nursery.cancel_scope.cancel()


async def run_with(
    worker: type[OneWorker], directory: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a gateway that has such a worker, until it ends by itself."""
    monkeypatch.setattr(supervisor, "OneWorker", worker)
    with trio.fail_after(30):
        await write_gateway(directory, port).run()


async def until_it_is(state: str, gateway: Supervisor) -> None:
    while gateway.settings_status.state != state:
        await trio.sleep(0.005)


async def test_a_bug_in_reading_settings_costs_no_session(
    tmp_path: Path, ports: Ports, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Path) -> Settings:
        raise RuntimeError("a bug")

    port = ports.take()
    gateway = write_gateway(tmp_path, port)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (upstream,) = await nursery.start(partial(serve_upstreams, (0,)))
            write_routes(tmp_path / "routes.d", upstream.socket.getsockname()[1])
            async with running(gateway), await trio.open_tcp_stream("127.0.0.1", port) as client:
                with monkeypatch.context() as patch:
                    patch.setattr(supervisor, "_read", read)
                    write_atomically(gateway.config, gateway.config.read_text() + "# saved\n")
                    await until_it_is("rejected", gateway)
                    assert (await says(client)).startswith(b"upstream")
                    (problem,) = gateway.settings_status.problems
                    assert str(problem) == "streamgw: bug while reading the settings: RuntimeError('a bug')"

                write_atomically(gateway.config, gateway.config.read_text().replace("10}", "20}"))
                await until_it_is("applied", gateway)
                assert gateway.crew.settings.reload.settle_ms == 20
                assert (await says(client)).startswith(b"upstream")
            nursery.cancel_scope.cancel()
    assert said == ["READY=1"]


async def test_a_listener_that_a_rejected_edit_cost_is_back_when_the_edit_is_taken_back(
    tmp_path: Path, ports: Ports, said: list[str]
) -> None:
    """The gateway died of it: it was told to accept from a socket that was closed."""
    port = ports.take()
    gateway = write_gateway(tmp_path, port)
    good = gateway.config.read_text()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (upstream,) = await nursery.start(partial(serve_upstreams, (0,)))
            write_routes(tmp_path / "routes.d", upstream.socket.getsockname()[1])
            async with running(gateway), await trio.open_tcp_stream("127.0.0.1", port) as client:
                assert (await says(client)).startswith(b"upstream")

                (sock,) = gateway.sockets.bound().values()
                with sock.dup():  # somebody still has it
                    write_atomically(gateway.config, good.replace("127.0.0.1", "0.0.0.0"))
                    await until_it_is("rejected", gateway)
                assert not reachable(port)
                assert (await says(client)).startswith(b"upstream")

                write_atomically(gateway.config, good)
                await until_it_is("applied", gateway)
                async with await trio.open_tcp_stream("127.0.0.1", port) as another:
                    assert (await says(another)).startswith(b"upstream")
            nursery.cancel_scope.cancel()
    assert said == ["READY=1"]


async def test_a_start_that_is_no_longer_wanted_ends_while_it_loads(
    tmp_path: Path, ports: Ports, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loading(OneWorker):
        async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            del task_status
            signal.raise_signal(signal.SIGTERM)
            try:
                await trio.sleep_forever()
            finally:
                self.ended.set()

    port = ports.take()
    await run_with(Loading, tmp_path, port, monkeypatch)

    assert said == ["STOPPING=1"]
    assert not reachable(port)


async def test_a_start_that_is_no_longer_wanted_once_it_accepts_is_a_drain(
    tmp_path: Path, ports: Ports, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(OneWorker):
        async def listen(self) -> None:
            await super().listen()
            signal.raise_signal(signal.SIGTERM)

    port = ports.take()
    await run_with(Loaded, tmp_path, port, monkeypatch)

    assert said == ["STOPPING=1"]
    assert not reachable(port)


class Loading(OneWorker):
    """Somebody wants an upgrade before anything is loaded."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        signal.raise_signal(signal.SIGUSR2)
        await super().run(task_status=task_status)


class Loaded(OneWorker):
    """The same of a gateway that already answers, and has not told the one before it to go."""

    async def listen(self) -> None:
        await super().listen()
        signal.raise_signal(signal.SIGUSR2)


@pytest.mark.parametrize("worker", [Loading, Loaded])
async def test_an_upgrade_that_is_wanted_during_the_start_begins_when_that_is_over(
    tmp_path: Path,
    ports: Ports,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    worker: type[OneWorker],
) -> None:
    """Else the gateway before it is never told to go: two of them accept, or the service manager follows the wrong one."""

    class Nobody(takeover.Successor):
        async def run(self) -> None:
            await trio.lowlevel.checkpoint()
            said.append("upgrade")
            signal.raise_signal(signal.SIGTERM)
            raise takeover.UpgradeFailed("nobody comes")

    monkeypatch.setattr(supervisor, "Successor", Nobody)

    with capture_logs() as logs:
        await run_with(worker, tmp_path, ports.take(), monkeypatch)

    assert said == ["READY=1", "upgrade", "STOPPING=1"]
    events = [each["event"] for each in logs]
    assert events.index("upgrade_postponed") < events.index("ready") < events.index("upgrading")
