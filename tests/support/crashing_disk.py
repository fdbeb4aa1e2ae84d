"""A disk on which the program dies."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from streamgw.config.disk import Disk


class Crash(BaseException):
    """The process is gone: nothing it would have done afterwards happens, cleaning up included."""


class CrashingDisk(Disk):
    """Dies before the step with a number, for good. What was not synced may be lost, as after a power cut.

    Only steps that change something count, from 0; `steps` names those that were made.
    """

    def __init__(self, at: int, *, random: Random) -> None:
        self.steps: list[str] = []
        self._at = at
        self._random = random
        self._unsynced: dict[int, Path] = {}

    def _step(self, name: str) -> None:
        if len(self.steps) >= self._at:
            for path in self._unsynced.values():
                if path.exists():
                    os.truncate(path, self._random.randint(0, path.stat().st_size))
            raise Crash
        self.steps.append(name)

    def create(self, path: Path, mode: int) -> int:
        self._step("create")
        fd = super().create(path, mode)
        self._unsynced[fd] = path
        return fd

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._step("write")
        return super().write(fd, data[: max(len(data) // 2, 1)])  # the kernel may take less than all

    def adopt(self, fd: int, model: os.stat_result, *, most: int = 0o7777) -> None:
        self._step("adopt")
        super().adopt(fd, model, most=most)

    def sync(self, fd: int) -> None:
        self._step("sync")
        super().sync(fd)
        self._unsynced.pop(fd)

    def close(self, fd: int) -> None:
        super().close(fd)  # the kernel closes what a dead process had open

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        super().rename(old, new)
        self._unsynced = {fd: new if path == old else path for fd, path in self._unsynced.items()}

    def exchange(self, one: Path, other: Path) -> bool:
        self._step("exchange")
        assert super().exchange(one, other), "tests run on a file system that can"
        swapped = {one: other, other: one}
        self._unsynced = {fd: swapped.get(path, path) for fd, path in self._unsynced.items()}
        return True

    def link(self, old: Path, new: Path) -> None:
        self._step("link")
        super().link(old, new)
        self._unsynced = {fd: new if path == old else path for fd, path in self._unsynced.items()}

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def make_directory(self, path: Path) -> None:
        self._step("make_directory")
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory")
        super().sync_directory(path)
