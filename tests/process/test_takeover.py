"""One gateway takes over from another: the words between them. tests/e2e/test_upgrade.py does it with whole gateways."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
import trio

from streamgw.process import takeover
from streamgw.process.channel import Channel
from streamgw.process.takeover import (
    VARIABLE,
    Handed,
    LastWords,
    Predecessor,
    Successor,
    UpgradeFailed,
    predecessor_fd,
)
from tests.support.gateway import PLAIN

_NEW = """
import os, sys, trio
from streamgw.process.takeover import LastWords, Predecessor, predecessor_fd

async def main(how):
    fd = predecessor_fd()
    words, predecessor = LastWords(fd), Predecessor(fd)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(predecessor.run)
        handed = await predecessor.handed()
        print(sorted(handed.listeners), sorted(handed.http), flush=True)
        (sock,) = handed.http.values()
        if how == "words":
            words.say(["conf/config.yaml:3: no", "not started"])
        if how in ("words", "dumb"):
            os._exit(78)
        await predecessor.loaded()
        if how == "late":
            os._exit(1)
        sock.accept()[0].send(b"new")
        await predecessor.ready()
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel()

trio.run(main, sys.argv[1])
"""

pytestmark = pytest.mark.slow


class Old:
    """A gateway that is asked to step back."""

    def __init__(self, tmp_path: Path, how: str) -> None:
        self.http = socket.create_server(("127.0.0.1", 0))
        self.listener = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.has_stepped_back = False
        self.ready: list[int] = []
        handed = Handed({"tcp 127.0.0.1:9100": self.listener}, {"127.0.0.1:7085": self.http})
        (tmp_path / "new.py").write_text(_NEW)
        self.successor = Successor(
            handed,
            step_back=self.step_back,
            on_ready=self.ready.append,
            command=[sys.executable, str(tmp_path / "new.py"), how],
        )

    async def step_back(self) -> None:
        await trio.lowlevel.checkpoint()
        self.has_stepped_back = True

    def close(self) -> None:
        for sock in (self.http, *self.listener):
            sock.close()


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def open_fds() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_the_old_one_steps_back_when_the_new_one_has_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = open_fds()
    old = Old(tmp_path, "well")
    with socket.create_connection(old.http.getsockname()) as client:
        with trio.fail_after(60):
            await old.successor.run()

        assert old.has_stepped_back
        assert len(old.ready) == 1
        assert await trio.to_thread.run_sync(client.recv, 10) == b"new"
    assert old.successor.child is not None
    await old.successor.child.wait()
    old.close()
    assert capfd.readouterr().out == "['tcp 127.0.0.1:9100'] ['127.0.0.1:7085']\n"
    assert open_fds() <= before + 1, "what trio keeps"


@pytest.mark.parametrize(
    ("how", "why"),
    [("words", "conf/config.yaml:3: no; not started"), ("dumb", "it ended with exit code 78")],
)
async def test_one_that_does_not_come_to_be_says_why(tmp_path: Path, how: str, why: str) -> None:
    old = Old(tmp_path, how)

    with pytest.raises(UpgradeFailed) as caught, trio.fail_after(60):
        await old.successor.run()

    assert str(caught.value) == why
    assert not caught.value.is_late
    assert not old.has_stepped_back
    assert old.ready == []
    old.close()


async def test_one_that_dies_after_the_old_one_stepped_back_is_late(tmp_path: Path) -> None:
    old = Old(tmp_path, "late")

    with pytest.raises(UpgradeFailed) as caught, trio.fail_after(60):
        await old.successor.run()

    assert caught.value.is_late
    old.close()


async def test_one_that_is_no_longer_wanted_is_ended(tmp_path: Path) -> None:
    before = open_fds()
    old = Old(tmp_path, "well")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.successor.run)
        while not old.has_stepped_back:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert old.ready == []
    old.close()
    assert open_fds() <= before + 1


async def test_one_that_dies_when_it_is_no_longer_wanted_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway was stopped, and its successor with it: instead of draining, it cut all sessions."""
    scope, speak = trio.CancelScope(), takeover._speak

    async def speak_until_nobody_wants_it(channel: Channel) -> None:
        try:
            await speak(channel)
        finally:
            scope.cancel()

    monkeypatch.setattr(takeover, "_speak", speak_until_nobody_wants_it)
    old = Old(tmp_path, "dumb")

    with trio.fail_after(60), scope:
        await old.successor.run()

    assert scope.cancelled_caught
    assert not old.has_stepped_back
    old.close()


async def test_whoever_takes_over_from_nobody_asks_nobody() -> None:
    nobody = Predecessor(predecessor_fd({}))

    await nobody.run()
    assert await nobody.handed() == Handed()
    await nobody.loaded()
    await nobody.ready()


async def test_a_predecessor_that_is_gone_is_no_reason_to_wait() -> None:
    ours, theirs = socket.socketpair()
    environ = {VARIABLE: str(ours.detach())}
    predecessor = Predecessor(predecessor_fd(environ))
    assert environ == {}
    theirs.close()

    with trio.fail_after(10):
        await predecessor.run()
        assert await predecessor.handed() == Handed()
        with pytest.raises(UpgradeFailed, match="does not answer"):
            await predecessor.loaded()
        await predecessor.ready()


def test_last_words_are_one_frame_and_never_wait() -> None:
    ours, theirs = socket.socketpair()
    words = LastWords(ours.fileno())

    words.say(["no"])
    frame = theirs.recv(1000)
    theirs.close()
    words.say(["nobody listens"])
    words.close()
    words.close()

    assert int.from_bytes(frame[:4]) == len(frame) - 4
    assert json.loads(frame[4:])["with"] == {"why": ["no"]}
    ours.close()
    LastWords(None).say(["nobody is there"])
