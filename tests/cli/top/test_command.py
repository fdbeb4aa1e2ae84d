"""`streamgw top`, from its options to its last frame."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from rich.console import Console

from streamgw.cli.failure import DENIED, UNREACHABLE, Failure
from streamgw.cli.top.client import Admin
from streamgw.cli.top.command import Top, admin_of
from streamgw.cli.top.terminal import Terminal
from streamgw.config.settings import load_settings
from tests.cli.conftest import Desk
from tests.support.fake_gateway_process import FakeGateway, fake_gateway
from tests.support.gateway import PLAIN, STREAMGW
from tests.support.pty_screen import PtyScreen, program_on, pty_screen

LISTEN = "apisix: {stream_proxy: {tcp: [9100]}}\n"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeGateway]:
    with fake_gateway(tmp_path) as gateway:
        yield gateway


# Where it asks


@pytest.mark.parametrize(
    ("text", "url", "key", "has_feed"),
    [
        (LISTEN, "http://127.0.0.1:9090/v1", "", False),
        (
            LISTEN + "deployment: {admin: {admin_key: [{name: a, key: abc, role: admin}]}}\n",
            "http://127.0.0.1:9180/streamgw/v1",
            "abc",
            True,
        ),
        (
            LISTEN
            + "deployment: {admin: {admin_key: [{name: v, key: v, role: viewer}, {name: a, key: abc, role: admin}],"
            " admin_listen: {ip: 0.0.0.0, port: 1234}}}\n",
            "http://127.0.0.1:1234/streamgw/v1",
            "abc",
            True,
        ),
    ],
    ids=["control", "admin", "anywhere"],
)
def test_what_the_settings_say(tmp_path: Path, text: str, url: str, key: str, has_feed: bool) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)

    found = admin_of(load_settings(path, environ={}), "", path)

    assert found == Admin(url, key, has_feed)
    assert admin_of(load_settings(path, environ={}), "mine", path).key in {"mine", key}


def test_settings_with_neither_are_said_so(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("apisix: {enable_control: false, stream_proxy: {tcp: [9100]}}\n")

    with pytest.raises(Failure, match="neither an Admin API nor a control API"):
        admin_of(load_settings(path, environ={}), "", path)


# Frames on paper


@pytest.mark.slow
def test_once_prints_a_frame_with_rates_and_what_ended_meanwhile(desk: Desk, fake: FakeGateway) -> None:
    fake.do("open", 3)

    result = desk.run("top", "--once", "--admin", fake.url, "-d", "2")

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"streamgw 0\.1\.0  ready  up 2 h  revision 3f2a9b0c  live", lines[0].rstrip())
    assert "3 of 3 sessions" in result.stdout
    assert "s sort" not in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_as_many_frames_as_asked_for(desk: Desk, fake: FakeGateway) -> None:
    result = desk.run("top", "-n", "3", "--admin", f"127.0.0.1:{fake.port}", "-d", "0.1")

    assert result.stdout.count("streamgw 0.1.0") == 3


@pytest.mark.slow
def test_a_pipe_gets_one_frame(desk: Desk, fake: FakeGateway) -> None:
    result = desk.run("top", "--admin", fake.url, "-d", "0.1")

    assert result.stdout.count("streamgw 0.1.0") == 1


def test_nobody_answers(desk: Desk) -> None:
    result = desk.run("top", "--once", "--admin", "127.0.0.1:1")

    assert result.exit_code == UNREACHABLE
    assert result.stderr.startswith("error: no gateway answers at http://127.0.0.1:1/streamgw/v1")


@pytest.mark.slow
def test_a_wrong_key_has_an_exit_code_of_its_own(desk: Desk, tmp_path: Path) -> None:
    with fake_gateway(tmp_path, key="secret") as gateway:
        wrong = desk.run("top", "--once", "--admin", gateway.url, environ={"STREAMGW_ADMIN_KEY": "wrong"})
        right = desk.run("top", "--once", "--admin", gateway.url, "--key", "secret", "-d", "2")

    assert (wrong.exit_code, right.exit_code) == (DENIED, 0)
    assert "failed to check token; see --key" in wrong.stderr
    assert right.stdout.splitlines()[0].rstrip().endswith("  live")


@pytest.mark.slow
def test_a_gateway_that_goes_away_between_frames_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_gateway(tmp_path) as gateway:
        top = Top(Admin(f"{gateway.url}/streamgw/v1"), 0.2)

        async def print_and_end() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(top.print_frames, 1000)
                while not capsys.readouterr().out:
                    await trio.sleep(0.01)
                gateway.child.kill()

        with pytest.RaisesGroup(pytest.RaisesExc(Exception, match="no gateway answers")):
            trio.run(print_and_end)


# Frames on a screen


@contextmanager
def running_top(fake: FakeGateway, *options: str) -> Iterator[tuple[PtyScreen, subprocess.Popen[bytes]]]:
    """In a process of its own, as a person starts it."""
    environ = {**os.environ, **PLAIN, "TERM": "xterm-256color"}
    command = [*STREAMGW, "top", "--admin", fake.url, "-d", "0.3", *options]
    with pty_screen() as screen, program_on(screen, command, environ=environ) as process:
        yield screen, process


def end_of(process: subprocess.Popen[bytes], screen: PtyScreen) -> int:
    code = process.wait(60)
    screen.wait_until(lambda _: screen.is_restored, what="the terminal is what it was")
    return code


@pytest.mark.slow
def test_sessions_come_and_go_on_the_screen_until_q(fake: FakeGateway) -> None:
    fake.do("open", 2)
    with running_top(fake) as (screen, process):
        screen.wait_for("  live", "2 of 2 sessions", "10.0.0.2:40002")

        (first, *_) = fake.do("open", 1)["sessions"]
        screen.wait_for("3 of 3 sessions")
        fake.do("close", first, "reset", "client", "connection reset")
        screen.wait_for("2 of 2 sessions", "reset", "connection reset")

        screen.press("q")
        assert end_of(process, screen) == 0


@pytest.mark.slow
def test_a_session_is_chosen_filtered_and_killed(fake: FakeGateway) -> None:
    fake.do("open", 12)
    with running_top(fake) as (screen, process):
        screen.wait_for("12 of 12 sessions")

        screen.press("/10.0.0.7\r")
        screen.wait_for("1 of 1 session with '10.0.0.7'")
        screen.press("\x1b[Bk")
        screen.wait_for("kill the session of 10.0.0.7:40007? y/n")
        screen.press("y")
        screen.wait_for("10.0.0.7:40007: killed")
        screen.press("\x1b")
        screen.wait_for("11 of 11 sessions")

        assert fake.do("open", 0)["killed"] == [f"{7:08x}"]
        screen.press("\x03")
        assert end_of(process, screen) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_gives_the_terminal_back(fake: FakeGateway, number: signal.Signals) -> None:
    with running_top(fake) as (screen, process):
        screen.wait_for("  live")

        process.send_signal(number)

        assert end_of(process, screen) == 0


@pytest.mark.slow
def test_it_comes_back_with_the_gateway(tmp_path: Path) -> None:
    with fake_gateway(tmp_path) as gateway, running_top(gateway) as (screen, process):
        gateway.do("open", 1)
        screen.wait_for("  live", "1 of 1 session")
        gateway.child.stop()
        screen.wait_for("no gateway answers")

        with fake_gateway(tmp_path, gateway.port) as again:
            again.do("set_status", pid=1, uptime_s=0.1)
            screen.wait_for("  live", "0 of 0 sessions")

        screen.press("q")
        assert end_of(process, screen) == 0


@pytest.mark.slow
def test_the_frame_follows_the_size_of_the_window(fake: FakeGateway) -> None:
    fake.do("open", 40)
    with running_top(fake) as (screen, process):
        screen.wait_for("of 40 sessions", "NODE")

        termios.tcsetwinsize(screen.slave, (10, 60))
        process.send_signal(signal.SIGWINCH)

        text = screen.wait_for("4 of 40 sessions")
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 60


async def in_process(fake: FakeGateway, act: Callable[[PtyScreen], None], *, has_feed: bool = True) -> None:
    with pty_screen() as screen:
        with os.fdopen(os.dup(screen.slave), "w") as file:
            console = Console(file=file, force_terminal=True, width=120, height=32)
            top = Top(Admin(f"{fake.url}/streamgw/v1", has_feed=has_feed), 0.2)
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(top.run, Terminal(screen.slave, console))
                    await trio.to_thread.run_sync(act, screen)
        screen.wait_until(lambda _: screen.is_restored, what="the terminal is what it was")


@pytest.mark.slow
async def test_without_an_admin_api_it_polls(fake: FakeGateway) -> None:
    def act(screen: PtyScreen) -> None:
        screen.wait_for("no live feed: no Admin API")
        fake.do("open", 1)
        screen.wait_for("1 of 1 session")
        screen.press("q")

    await in_process(fake, act, has_feed=False)


@pytest.mark.slow
async def test_a_session_that_had_ended_already_cannot_be_killed(fake: FakeGateway) -> None:
    fake.do("open", 1)

    def act(screen: PtyScreen) -> None:
        screen.wait_for("1 of 1 session")
        screen.press("p\x1b[Bk")
        screen.wait_for("y/n")
        fake.do("close", f"{1:08x}")
        screen.press("y")
        screen.wait_for("had ended already")
        fake.do("reload", "rejected", "unknown field")
        screen.wait_for("REJECTED")
        fake.child.stop()
        screen.wait_for("no gateway answers")
        screen.press("ky")
        screen.wait_for("127.0.0.1", "paused")
        os.kill(os.getpid(), signal.SIGTERM)

    await in_process(fake, act)


def test_help_says_the_keys() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamgw", "top", "--help"], capture_output=True, text=True, check=True
    )

    assert "k kills it" in done.stdout
