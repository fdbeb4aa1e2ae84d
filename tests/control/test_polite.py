from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from streamgw.control.polite import FREEZE_FROM, SWITCH_INTERVAL_S, polite_to_the_event_loop


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """What a test freezes is thawed after it, and what earlier ones left frozen before: it may die meanwhile."""
    gc.unfreeze()
    yield
    gc.unfreeze()


def settings() -> tuple[float, bool]:
    return sys.getswitchinterval(), gc.isenabled()


def test_the_interpreter_is_set_for_a_while() -> None:
    before = settings()

    with polite_to_the_event_loop():
        assert settings() == (pytest.approx(SWITCH_INTERVAL_S), False)

    assert settings() == before


def test_it_is_put_back_after_an_error_too() -> None:
    before = settings()

    with pytest.raises(ZeroDivisionError), polite_to_the_event_loop():
        raise ZeroDivisionError

    assert settings() == before


def test_of_two_that_overlap_the_last_puts_it_back() -> None:
    """A reload and a check of the Admin API: without a count the interval stayed at half a millisecond for ever."""
    before = settings()
    reload, check = polite_to_the_event_loop(), polite_to_the_event_loop()

    reload.__enter__()
    check.__enter__()
    reload.__exit__(None, None, None)
    assert settings() == (pytest.approx(SWITCH_INTERVAL_S), False)
    check.__exit__(None, None, None)

    assert settings() == before


def test_much_that_stays_is_taken_out_of_the_collectors_sight() -> None:
    before = gc.get_freeze_count()

    with polite_to_the_event_loop():
        many = [[number] for number in range(2 * FREEZE_FROM)]

    assert gc.get_freeze_count() - before >= len(many)


def test_little_is_not() -> None:
    before = gc.get_freeze_count()

    with polite_to_the_event_loop():
        few = [[number] for number in range(10)]

    assert gc.get_freeze_count() == before
    assert few


def test_a_collector_that_pauses_already_is_left_alone() -> None:
    """The gateway starts: what it has imported would be collected, and the collector switched on."""
    gc.disable()
    before = gc.get_stats()
    try:
        with polite_to_the_event_loop():
            assert not gc.isenabled()
        assert not gc.isenabled()
        assert gc.get_stats() == before
    finally:
        gc.enable()
