"""streamgw upgrade, before a gateway that is not there, or is this test. tests/e2e/test_upgrade.py upgrades a real one."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Desk
from tests.support.status_endpoint import STATUS, serving


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """How often this process was told to upgrade."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    yield seen
    signal.signal(signal.SIGUSR2, before)


def status(**changes: object) -> dict[str, Any]:
    return {**copy.deepcopy(dict(STATUS)), "pid": os.getpid(), **changes}


def failed(attempt: int) -> dict[str, Any]:
    answer = status()
    message = f"attempt {attempt} failed: conf/config.yaml:3: no"
    answer["settings"]["warnings"] = [{"file": "streamgw upgrade", "message": message}]
    return answer


def test_it_waits_until_another_process_is_ready(desk: Desk, signals: list[int]) -> None:
    answers = [status(), status(), b"", status(pid=4712, ready=False), status(pid=4712, version="0.2.0")]
    with serving(lambda: answers.pop(0)) as url:
        result = desk.run("upgrade", "--url", url)

    assert result.exit_code == 0
    assert signals == [signal.SIGUSR2]
    assert f"streamgw 0.2.0 (pid 4712) has taken over from 0.1.0 (pid {os.getpid()})\n" == result.stdout


def test_a_failure_is_said_with_its_reason_also_the_second_time(desk: Desk, signals: list[int]) -> None:
    answers = [failed(1), failed(1), failed(2)]
    with serving(lambda: answers.pop(0)) as url:
        result = desk.run("upgrade", "--url", url)

    assert result.exit_code == 70
    assert result.stderr == "error: attempt 2 failed: conf/config.yaml:3: no\n"


def test_it_does_not_wait_for_ever(desk: Desk, signals: list[int]) -> None:
    with serving(status) as url:
        result = desk.run("upgrade", "--url", url, "--timeout", "0.2")

    assert result.exit_code == 75


def test_a_process_that_is_not_here_cannot_be_told(desk: Desk) -> None:
    with serving(lambda: status(pid=2**22 + 1)) as url:
        result = desk.run("upgrade", "--url", url)

    assert result.exit_code == 69
    assert "no process 4194305 on this machine" in result.stderr


def test_nobody_answers(desk: Desk) -> None:
    result = desk.run("upgrade", "--url", "http://127.0.0.1:1")

    assert result.exit_code == 69
