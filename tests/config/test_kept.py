from __future__ import annotations

from collections.abc import Callable

import pytest

from streamgw.config.kept import Kept


def make(value: str) -> Callable[[], str]:
    return lambda: value


def test_what_was_made_once_is_not_made_again() -> None:
    kept = Kept[str]()
    assert kept.get("a", make("first")) == "first"
    assert kept.get("a", make("second")) == "first"

    kept.finish(forget=True)

    assert kept.get("a", make("third")) == "first"


def test_what_a_load_did_not_ask_for_is_forgotten() -> None:
    kept = Kept[str]()
    kept.get("a", make("first"))
    kept.finish(forget=True)

    kept.finish(forget=True)

    assert kept.get("a", make("second")) == "second"


def test_a_rejected_load_costs_nothing_of_what_runs() -> None:
    kept = Kept[str]()
    kept.get("a", make("first"))
    kept.finish(forget=True)
    kept.get("b", make("other"))

    kept.finish(forget=False)

    assert (kept.get("a", make("second")), kept.get("b", make("second"))) == ("first", "other")


def test_what_could_not_be_made_is_tried_again() -> None:
    kept = Kept[str]()

    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: str(1 / 0))

    assert kept.get("a", make("now")) == "now"
