from __future__ import annotations

import attrs
import pytest

from streamgw.core.errors import Answered, Reason, Rejected
from streamgw.plugins.echo import PLUGIN
from tests.support.plugins import CLIENT, built, decide, refusals


def test_the_client_is_answered() -> None:
    with pytest.raises(Answered) as answered:
        decide(built(PLUGIN, body="grüezi\n"))

    assert answered.value.words == "grüezi\n".encode()
    assert answered.value.reason == Reason.CLOSED


def test_over_udp_there_is_no_answer() -> None:
    with pytest.raises(Rejected, match="over TCP only"):
        decide(built(PLUGIN, body="hello"), attrs.evolve(CLIENT, transport="udp"))


def test_what_it_may_not_be_told() -> None:
    assert refusals(PLUGIN) == ["body: is required"]
    assert refusals(PLUGIN, body="") == ["body: expected 1 to 4096 characters, got 0"]
