"""Looking at first bytes without taking them."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from streamgw.core.errors import PeerReset, PrereadTimeout, PrereadTooLong
from streamgw.core.wire import NeedMore
from streamgw.dataplane.preread import Bounds, look
from tests.support.fake_pump import FakeEnd, FakePump


def line(buffer: bytes) -> bytes | NeedMore:
    """What is looked for: one line."""
    return buffer.partition(b"\n")[0] if b"\n" in buffer else NeedMore(len(buffer) + 1)


async def look_at(
    end: FakeEnd, *, owed: bool = True, limit_bytes: int = 100, what: str = "a line"
) -> bytes | None:
    bounds = Bounds(deadline=trio.current_time() + 3, limit_bytes=limit_bytes, timeout_s=3)
    return await look(
        FakePump(), end, line, bounds, what=what, is_owed=lambda buffer: owed or buffer.startswith(b"he")
    )


async def test_it_is_asked_again_until_there_is_enough(autojump_clock: trio.testing.MockClock) -> None:
    end = FakeEnd(received=b"he", says_later=[(1, b"ll"), (2, b"o\nrest")])

    assert await look_at(end) == b"hello"
    assert end.received == b"hello\nrest"


@pytest.mark.parametrize(
    ("eof", "says"), [(True, "closed after 2 bytes of a line"), (False, "no whole line within 3 s")]
)
async def test_what_is_owed_and_does_not_come_is_an_error(
    autojump_clock: trio.testing.MockClock, eof: bool, says: str
) -> None:
    with pytest.raises(PrereadTimeout, match=says):
        await look_at(FakeEnd(received=b"he", eof=eof))


@pytest.mark.parametrize(
    ("what", "noun"), [("a hello", "hello"), ("an MQTT CONNECT", "MQTT CONNECT"), ("bytes", "bytes")]
)
async def test_a_message_says_what_is_missing_without_its_article(
    autojump_clock: trio.testing.MockClock, what: str, noun: str
) -> None:
    with pytest.raises(PrereadTimeout) as error:
        await look_at(FakeEnd(), what=what)

    assert str(error.value) == f"no whole {noun} within 3 s"


async def test_what_is_not_owed_may_stay_away(autojump_clock: trio.testing.MockClock) -> None:
    assert await look_at(FakeEnd(received=b"h"), owed=False) is None


async def test_what_has_begun_is_owed(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(PrereadTimeout):
        await look_at(FakeEnd(received=b"he!"), owed=False)


async def test_more_than_the_limit_is_not_waited_for() -> None:
    with pytest.raises(PrereadTooLong, match="a line of 5 bytes; the limit is 4"):
        await look_at(FakeEnd(received=b"hell"), limit_bytes=4)


async def test_what_has_come_beyond_the_limit_does_not_count() -> None:
    with pytest.raises(PrereadTooLong):
        await look_at(FakeEnd(received=b"hello\n"), limit_bytes=4)


async def test_a_reset_is_passed_on() -> None:
    with pytest.raises(PeerReset):
        await look_at(FakeEnd(resets=True))
