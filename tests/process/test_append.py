"""Lines at the end of a file, and what a file system can do to them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
import trio

from streamgw.core.batch import BatchPolicy, Collector, ToFile
from streamgw.process.append import Appender
from tests.support.collectors import until
from tests.support.full_disk import no_more_than_10_bytes


def collector(path: Path, policy: BatchPolicy = BatchPolicy()) -> Collector:
    return Collector(to=ToFile(path=str(path)), policy=policy)


async def append(appender: Appender, path: Path, data: bytes) -> None:
    await appender.append(collector(path), str(path), data)


async def test_a_file_is_made_for_its_owner_and_group_and_added_to(tmp_path: Path) -> None:
    path, appender = tmp_path / "a.log", Appender()
    before = os.umask(0)
    try:
        await append(appender, path, b"a\n")
    finally:
        os.umask(before)
    await append(appender, path, b"b\n")

    assert path.read_bytes() == b"a\nb\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path, appender = tmp_path / "a.log", Appender()
    await append(appender, path, b"a\n")
    path.rename(tmp_path / "a.log.1")

    await append(appender, path, b"b\n")

    assert (path.read_bytes(), (tmp_path / "a.log.1").read_bytes()) == (b"b\n", b"a\n")


async def test_no_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await append(Appender(), tmp_path / "no" / "a.log", b"a\n")

    assert not (tmp_path / "no").exists()


async def test_a_batch_that_does_not_fit_leaves_no_half_line(tmp_path: Path) -> None:
    path, appender = tmp_path / "a.log", Appender()
    with no_more_than_10_bytes():
        await append(appender, path, b"1234\n")

        with pytest.raises(OSError, match="File too large"):
            await append(appender, path, b"5678\n9012\n")

        assert path.read_bytes() == b"1234\n"
        await append(appender, path, b"678\n")
    assert path.read_bytes() == b"1234\n678\n"


async def test_a_file_system_without_locks_gets_its_lines_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)

    await append(Appender(), tmp_path / "a.log", b"1234\n")

    assert (tmp_path / "a.log").read_bytes() == b"1234\n"


async def test_a_full_device_says_so() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        await append(Appender(), Path("/dev/full"), b"a\n")


async def test_a_fifo_is_written_to_if_somebody_reads_it(tmp_path: Path) -> None:
    path, appender = tmp_path / "fifo", Appender()
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device or address"):
        await append(appender, path, b"nobody\n")

    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    await append(appender, path, b"a\n")

    assert os.read(reader, 100) == b"a\n"
    os.close(reader)


async def test_a_file_that_is_stuck_holds_up_its_own_batches_only(tmp_path: Path) -> None:
    """A FIFO whose reader does not read, and a batch that is larger than the pipe."""
    stuck, free, appender = tmp_path / "fifo", tmp_path / "a.log", Appender()
    os.mkfifo(stuck)
    reader = os.open(stuck, os.O_RDONLY | os.O_NONBLOCK)
    threads = threading.active_count()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append, appender, stuck, b"x" * (1 << 20))
        await until(lambda: appender._writing)
        nursery.cancel_scope.cancel()
    for _ in range(20):
        with pytest.raises(OSError, match="still writing") as busy:
            await append(appender, stuck, b"y\n")
        assert busy.value.errno == errno.EBUSY
    await append(appender, free, b"a\n")

    assert free.read_bytes() == b"a\n"
    assert threading.active_count() <= threads + 2
    os.close(reader)  # EPIPE: the thread comes back
    await until(lambda: not appender._writing)


async def test_two_queues_of_one_file_take_turns(tmp_path: Path) -> None:
    path, appender = tmp_path / "a.log", Appender()
    queues = [collector(path, BatchPolicy(max_records=size)) for size in range(1, 9)]

    async def write(queue: Collector, letter: bytes) -> None:
        for _ in range(20):
            await appender.append(queue, str(path), letter * 5000 + b"\n")

    async with trio.open_nursery() as nursery:
        for number, queue in enumerate(queues):
            nursery.start_soon(write, queue, b"%d" % number)

    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d" % number * 5000 for number in range(8) for _ in range(20))
