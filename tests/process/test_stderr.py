"""Whoever logs neither waits nor fails, whatever standard error is: and its lines come, whole and in order, if they can."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import socket
import subprocess
import sys
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from streamgw.process.stderr import LIMIT_BYTES, LineLogger, Stderr
from tests.support.descriptors import is_ready, no_more_descriptors
from tests.support.full_disk import no_more_than_10_bytes
from tests.support.gateway import PLAIN

_LINE = "x" * 199 + "\n"
_MORE_THAN_A_PIPE_HOLDS = 1_000
_PATIENCE_S = 60.0
"""However busy the machine is."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read, where to write. The test may close either."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def _logging_is_put_back() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def _numbered(count: int) -> list[str]:
    return [f"{number:199}" for number in range(count)]


def _fill(stream: Stderr) -> int:
    """Say as much as nobody reads until a line is dropped; return how many were taken."""
    taken = 0
    while not stream.dropped:
        stream.write(_LINE)
        taken += 1
    return taken - 1


def _read(fd: int) -> bytes:
    """What is there now."""
    read = b""
    while is_ready(fd, select.POLLIN) and (chunk := os.read(fd, 65536)):
        read += chunk
    return read


def _read_all(fd: int, stream: Stderr) -> bytes:
    """What is there, and what follows it when there is room."""
    read = b""
    while chunk := _read(fd):
        read += chunk
        stream.flush()
    return read


def test_a_reader_that_has_gone_is_nobodys_trouble(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = Stderr(writer)
    os.close(reader)

    assert _fill(stream) * len(_LINE) > LIMIT_BYTES

    stream.drain(_PATIENCE_S)  # at once: it will not get better


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_gives_all_when_it_is_read(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    stream, lines = Stderr(writer), _numbered(_MORE_THAN_A_PIPE_HOLDS)

    for line in lines:
        stream.write(f"{line}\n")

    assert _read_all(reader, stream).decode().splitlines() == lines
    assert stream.dropped == 0


def test_the_open_file_is_left_as_it_was(pipe: tuple[int, int]) -> None:
    """The shell that started us, and the next program in it, have the same one."""
    _, writer = pipe
    before = fcntl.fcntl(writer, fcntl.F_GETFL)

    _fill(Stderr(writer))

    assert fcntl.fcntl(writer, fcntl.F_GETFL) == before
    assert os.get_blocking(writer)


def test_a_process_out_of_descriptors_does_not_wait_either(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream, lines = Stderr(writer), _numbered(_MORE_THAN_A_PIPE_HOLDS)

    with no_more_descriptors():
        for line in lines:
            stream.write(f"{line}\n")

    assert _read_all(reader, stream).decode().splitlines() == lines


def test_a_terminal_that_is_not_read_holds_nobody_up() -> None:
    """It has room for a part of a line, and says that it has room."""
    reader, terminal = pty.openpty()
    tty.setraw(terminal)
    stream, lines = Stderr(terminal), _numbered(_MORE_THAN_A_PIPE_HOLDS)

    for line in lines:
        stream.write(f"{line}\n")

    assert stream.isatty()
    assert _read_all(reader, stream).decode().splitlines() == lines
    os.close(reader)
    os.close(terminal)


def test_a_socket_that_is_not_read_holds_nobody_up() -> None:
    """What systemd hands down."""
    reader, writer = socket.socketpair()
    with reader, writer:
        stream, lines = Stderr(writer.fileno()), _numbered(5 * _MORE_THAN_A_PIPE_HOLDS)

        for line in lines:
            stream.write(f"{line}\n")

        assert _read_all(reader.fileno(), stream).decode().splitlines() == lines
        assert writer.getblocking()


def test_a_full_disk_costs_nothing_if_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file:
        stream = Stderr(file.fileno())
        with no_more_than_10_bytes():
            stream.write("12345\n")
            stream.write("67890\n")
            assert path.read_bytes() == b"12345\n6789"

        stream.write("next\n")

    assert path.read_bytes() == b"12345\n67890\nnext\n"


def test_a_full_device_costs_nobody_but_lines() -> None:
    with Path("/dev/full").open("wb") as file:
        assert _fill(Stderr(file.fileno())) * len(_LINE) > LIMIT_BYTES


def test_a_line_longer_than_a_pipe_takes_in_one_piece_comes_as_a_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = Stderr(writer)

    stream.write("x" * 200_000 + "\n")
    stream.write("y\n")

    assert _read_all(reader, stream) == b"x" * 200_000 + b"\ny\n"


def test_a_longer_line_is_one_piece_where_there_is_room(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what other processes say stands in the middle of it."""
    reader, writer = pipe
    stream, written, write = Stderr(writer), list[int](), os.write

    def noted(fd: int, data: bytes) -> int:
        written.append(write(fd, data))
        return written[-1]

    monkeypatch.setattr(os, "write", noted)
    stream.write("x" * 6_000 + "\n")
    stream.write("y\n")

    assert written == [6_001, 2]
    assert _read_all(reader, stream) == b"x" * 6_000 + b"\ny\n"


def test_lines_of_several_processes_stay_whole(pipe: tuple[int, int]) -> None:
    """Both find the pipe full at any place, and go on there."""
    reader, writer = pipe
    streams, read = {name: Stderr(writer) for name in "ab"}, b""

    for _ in range(_MORE_THAN_A_PIPE_HOLDS):
        for name, stream in streams.items():
            stream.write(name * 150 + "\n")
        read += os.read(reader, 299)
    for stream in streams.values():
        read += _read_all(reader, stream)

    assert {*read.decode().splitlines()} == {"a" * 150, "b" * 150}
    assert read.count(b"\n") == 2 * _MORE_THAN_A_PIPE_HOLDS


def test_threads_do_not_wait_for_each_other_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file, ThreadPoolExecutor(4) as pool:
        stream = Stderr(file.fileno())

        def say(name: str) -> None:
            for _ in range(1_000):
                stream.write(f"{name}\n")

        list(pool.map(say, "abcd"))

    assert sorted(path.read_text().split()) == sorted("abcd" * 1_000)


def test_the_pieces_of_a_line_are_written_when_it_is_complete(pipe: tuple[int, int]) -> None:
    """As `print` writes, and the interpreter a traceback."""
    reader, writer = pipe
    stream = Stderr(writer)

    stream.write("half of it, ")
    assert _read(reader) == b""
    print("\udcff and the rest", file=stream)

    assert _read(reader) == rb"half of it, \udcff and the rest" + b"\n"


@pytest.mark.usefixtures("_logging_is_put_back")
def test_what_was_dropped_is_counted_and_said_before_the_next_line_that_is_not(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    stream = Stderr(writer)
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=lambda *_: LineLogger(stream)
    )
    taken = _fill(stream)
    structlog.get_logger().info("lost")

    before = _read(reader)
    structlog.get_logger().info("back")
    after = _read_all(reader, stream)

    lines = (before + after).decode().splitlines()
    assert lines[:taken] == [_LINE.rstrip()] * taken
    assert [json.loads(line) for line in lines[taken:]] == [
        {"event": "log_lines_dropped", "count": 2},
        {"event": "back"},
    ]
    assert stream.dropped == 2


def test_when_it_is_read_again_no_more_is_dropped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = Stderr(writer)
    taken = _fill(stream)

    read = _read(reader)
    stream.write("next\n")

    assert read + _read_all(reader, stream) == _LINE.encode() * taken + b"next\n"


def test_at_the_end_a_reader_that_is_slow_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stream = Stderr(writer)
    taken = _fill(stream)

    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(_read_to_the_end, reader)
        stream.drain(_PATIENCE_S)
        stream.close()
        os.close(writer)

    assert read.result() == _LINE.encode() * taken


def _read_to_the_end(fd: int) -> bytes:
    read = b""
    while chunk := os.read(fd, 4096):
        read += chunk
    return read


def test_at_the_end_a_reader_that_hangs_is_left_alone(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    stream = Stderr(writer)
    _fill(stream)

    stream.drain(0.01)

    assert not is_ready(writer, select.POLLOUT)


def test_a_process_that_was_started_without_one_says_nothing() -> None:
    stream = Stderr(-1)

    stream.write("to whoever has number 2 now?\n")
    stream.drain(_PATIENCE_S)

    assert stream.fileno() == -1
    assert not stream.isatty()


_SAY_MUCH = """
import sys, warnings
from streamgw.process.stderr import take_over_stderr
take_over_stderr()
warnings.warn("a warning")
print("x" * 300_000, file=sys.stderr)
"""


def _started(code: str, stderr: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, **PLAIN, "PYTHONWARNINGS": "default"}
    return subprocess.Popen([sys.executable, "-c", code], stderr=stderr, env=env)


@pytest.mark.slow
def test_the_exit_code_is_the_same_when_nobody_reads(pipe: tuple[int, int]) -> None:
    """Python's own stream fails once more when it is flushed at the end, which makes it 120."""
    reader, writer = pipe
    os.close(reader)

    assert _started(f"{_SAY_MUCH}\nsys.exit(78)", writer).wait() == 78


@pytest.mark.slow
def test_the_traceback_of_the_end_comes_after_all_that_was_said(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with _started(f"{_SAY_MUCH}\nraise AssertionError('the end')", writer) as child:
        os.close(writer)
        said = _read_to_the_end(reader)
        assert child.wait() == 1

    assert b"UserWarning: a warning\n" in said
    assert b"x" * 300_000 in said
    assert said.endswith(b"AssertionError: the end\n")


@pytest.mark.slow
def test_number_2_of_a_process_that_was_started_without_one_is_not_written_to(tmp_path: Path) -> None:
    other = tmp_path / "other"
    code = f"open({str(other)!r}, 'w').close(); file = open({str(other)!r}, 'a'); assert file.fileno() == 2\n{_SAY_MUCH}"

    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]
    subprocess.run(closed, check=True, env={**os.environ, **PLAIN, "PYTHONWARNINGS": "default"})

    assert other.read_bytes() == b""
