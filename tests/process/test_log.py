"""The access log never delays a session and never loses a line without saying so."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from streamgw.config.settings import LogSettings
from streamgw.process import log as module
from streamgw.process.log import LIMIT_BYTES, AccessLog, configure_logging
from tests.support.collectors import until
from tests.support.descriptors import open_descriptors, opened_since
from tests.support.full_disk import no_more_than_10_bytes


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    """Configured once per process in life; here the next test would log to a stream that is closed."""
    yield
    structlog.reset_defaults()


async def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    log = AccessLog(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        for number in range(100):
            log.write(f"line {number}")
        nursery.cancel_scope.cancel()

    assert path.read_text().splitlines() == [f"line {number}" for number in range(100)]


async def test_reopening_follows_a_moved_file(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    log = AccessLog(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("before")
        with trio.fail_after(30):
            while not path.read_text():
                await trio.sleep(0.01)
        path.rename(moved)

        log.reopen()
        log.write("after")
        with trio.fail_after(30):
            while not path.exists() or not path.read_text():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert moved.read_text() == "before\n"
    assert path.read_text() == "after\n"


async def test_reopening_while_it_ends_leaves_no_descriptor(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"))
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("a line")
        log.reopen()
        nursery.cancel_scope.cancel()

    assert not opened_since(before)
    assert (tmp_path / "access.log").read_text() == "a line\n"


async def test_at_the_end_what_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users noticed: after a stop lines were missing, and the last one was half a line."""
    monkeypatch.setattr(module, "PATIENCE_S", 60.0)  # however busy the machine is
    path = tmp_path / "access.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log, received = AccessLog(str(path)), bytearray()

    async def read_on() -> None:
        while True:
            await trio.lowlevel.wait_readable(reader)
            received.extend(os.read(reader, 65536))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as gateway:
            await gateway.start(log.run)
            log.write("x" * 200_000)  # more than a pipe holds
            await trio.lowlevel.wait_readable(reader)
            gateway.cancel_scope.cancel()
            nursery.start_soon(read_on)
        nursery.cancel_scope.cancel()
    while chunk := os.read(reader, 65536):  # until nobody has it open to write
        received += chunk
    os.close(reader)

    assert received == b"x" * 200_000 + b"\n"
    assert log.dropped == 0


async def test_at_the_end_a_file_that_is_stuck_costs_lines_that_are_counted(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    path = tmp_path / "access.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path))
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            log.write("x" * 200_000)
            log.write("y")
            await trio.lowlevel.wait_readable(reader)
            log.write("waits")
            nursery.cancel_scope.cancel()
        log.write("late")

    assert log.dropped == 4
    assert [(told["event"], told["dropped"]) for told in logs] == [("access_log_stuck", 3)]
    await _read_until(reader, b"\ny\n")


async def test_a_write_that_is_stuck_keeps_its_descriptor(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Another file that got the number would receive the rest of the lines."""
    path = tmp_path / "access.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("x" * 200_000)  # more than a pipe holds
        nursery.cancel_scope.cancel()

    assert await _read_until(reader, b"\n") == b"x" * 200_000 + b"\n"


async def _read_until(reader: int, end: bytes) -> bytes:
    """And close it."""
    received = b""
    while not received.endswith(end):
        await trio.lowlevel.wait_readable(reader)
        received += os.read(reader, 65536)
    os.close(reader)
    return received


async def test_standard_output_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("-")
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("hello")
        nursery.cancel_scope.cancel()

    assert capfd.readouterr().out == "hello\n"


async def test_a_gateway_that_was_started_without_standard_output_logs_to_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    log = AccessLog(str(tmp_path / "access.log"))
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("hello")
        nursery.cancel_scope.cancel()

    assert (tmp_path / "access.log").read_text() == "hello\n"


async def test_standard_output_that_is_closed_is_an_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    with pytest.RaisesGroup(OSError, allow_unwrapped=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(AccessLog("-").run)


async def test_a_writer_that_is_stuck_costs_lines_not_memory(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "never-opened"))
    line = "x" * 1_000_000

    for _ in range(40):
        log.write(line)

    assert log.dropped == 40 - (LIMIT_BYTES // len(line) + 1)


async def test_a_path_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = AccessLog(str(tmp_path / "file" / "access.log"))

    with pytest.RaisesGroup(NotADirectoryError, allow_unwrapped=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)


async def test_a_full_disk_is_told_and_survived(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(format="json"))
    log = AccessLog("/dev/full")
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("lost")
        nursery.cancel_scope.cancel()

    told = json.loads(capfd.readouterr().err)
    assert told["event"] == "access_log_write_failed"
    assert told["level"] == "error"
    assert os.strerror(28) in told["error"]
    assert log.dropped == 1


async def test_lines_that_do_not_fit_are_counted_and_leave_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    with capture_logs(), no_more_than_10_bytes():
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            log.write("1234")
            await until(lambda: path.read_bytes() == b"1234\n")

            log.write("5678")
            log.write("9012")
            await until(lambda: log.dropped == 2)

            log.write("789")
            nursery.cancel_scope.cancel()

    assert path.read_bytes() == b"1234\n789\n"
    assert log.dropped == 2


def test_the_level_is_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings(level="warning", format="console"))

    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud", key="value")

    err = capfd.readouterr().err
    assert "quiet" not in err
    assert "loud" in err
    assert "key=value" in err


async def test_the_log_can_be_moved_while_lines_come(tmp_path: Path) -> None:
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    log = AccessLog(str(old))
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.move(str(old))
        log.move(str(new))
        log.write("after")
        with trio.fail_after(30):
            while not new.exists() or not new.read_text():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert (old.read_text(), new.read_text()) == ("", "after\n")


async def test_lines_of_several_processes_do_not_get_mixed_in_a_pipe(tmp_path: Path) -> None:
    """Both write far more than a pipe takes in one piece, and the reader is slow."""
    path, lines = tmp_path / "pipe", 2_000
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    text = bytearray()
    logs = [AccessLog(str(path), is_shared=True) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for name, log in zip("ab", logs, strict=True):
            await nursery.start(log.run)
            for _ in range(lines):
                log.write(name * 150)
        with trio.fail_after(30):
            while text.count(b"\n") < 2 * lines:
                await trio.lowlevel.wait_readable(reader)
                text += os.read(reader, 700)
        nursery.cancel_scope.cancel()
    os.close(reader)

    assert {*text.decode().splitlines()} == {"a" * 150, "b" * 150}


async def test_a_line_too_long_to_be_kept_apart_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(path), is_shared=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        log.write("x" * 10_000)
        log.write("y")
        text = b""
        with trio.fail_after(30):
            while text.count(b"\n") < 2:
                await trio.lowlevel.wait_readable(reader)
                text += os.read(reader, 20_000)
        nursery.cancel_scope.cancel()
    os.close(reader)

    assert text == b"x" * 10_000 + b"\ny\n"


def test_a_worker_names_itself_and_leaves_to_the_supervisor_what_all_would_say(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging(LogSettings(format="json"), worker=3)
    log = structlog.get_logger()

    log.info("routes_applied", revision="x")
    log.error("bug", phase="relay")

    (line,) = map(json.loads, capfd.readouterr().err.splitlines())
    assert (line["event"], line["worker"]) == ("bug", 3)
