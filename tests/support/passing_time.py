"""Time as a test lets it pass, where what is tested works in threads: those are real, and a clock that jumps by itself passes them."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked


async def settled() -> None:
    """Until every task waits, and no thread works for one of them any more."""
    threads = trio.to_thread.current_default_thread_limiter()
    await wait_all_tasks_blocked()
    while threads.borrowed_tokens:
        await wait_all_tasks_blocked(0.01)


async def pass_time(clock: MockClock, seconds: float) -> None:
    """Go from one deadline to the next until so many seconds have passed. At each, whoever has something to do has done it.

    Args:
      clock: pytest-trio's `mock_clock`, which stands still otherwise.
    """
    ends_at = clock.current_time() + seconds
    await settled()
    while (left_s := ends_at - clock.current_time()) > 0:
        clock.jump(min(left_s, trio.lowlevel.current_statistics().seconds_to_next_deadline))
        await settled()
