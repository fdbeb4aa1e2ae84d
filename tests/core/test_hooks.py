from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.hooks import Hooks, LocalLedger, Plugin, UpstreamUse


def test_a_ledger_counts_each_key_of_each_scope_by_itself() -> None:
    ledger = LocalLedger()

    counts = [ledger.enter("a", "x"), ledger.enter("a", "x"), ledger.enter("a", "y"), ledger.enter("b", "x")]

    assert counts == [1, 2, 1, 1]


def test_a_ledger_forgets_a_key_that_nobody_is_in() -> None:
    ledger = LocalLedger()
    ledger.enter("a", "x")
    ledger.enter("a", "x")

    ledger.leave("a", "x")
    assert ledger.enter("a", "x") == 2
    ledger.leave("a", "x")
    ledger.leave("a", "x")

    assert ledger._counts == {}


def test_moments_of_a_key_are_an_interval_apart() -> None:
    ledger = LocalLedger()

    booked = [ledger.book("a", "x", 10.0, interval_s=0.5, ahead_s=1.0) for _ in range(4)]

    assert booked == [0.0, 0.5, 1.0, None]
    assert ledger.book("a", "x", 10.5, interval_s=0.5, ahead_s=1.0) == 1.0, "what was refused took nothing"
    assert ledger.book("a", "y", 10.0, interval_s=0.5, ahead_s=0.0) == 0.0


def test_a_flood_of_keys_does_not_grow_for_ever() -> None:
    ledger = LocalLedger(max_booked=3)

    for number in range(5):
        ledger.book("a", f"k{number}", 0.0, interval_s=1.0, ahead_s=0.0)

    assert len(ledger._booked) == 3
    assert ledger.book("a", "k4", 0.0, interval_s=1.0, ahead_s=0.0) is None, "the latest are remembered"
    assert ledger.book("a", "k0", 0.0, interval_s=1.0, ahead_s=0.0) == 0, "the oldest is forgotten"


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=80),
    st.floats(0.1, 20),
    st.integers(0, 5),
)
def test_no_stretch_of_time_has_more_moments_than_its_intervals_and_those_ahead(
    pauses: list[float], rate: float, burst: int
) -> None:
    ledger, now, booked = LocalLedger(), 0.0, []
    for pause in pauses:
        now += pause
        early_s = ledger.book("a", "k", now, interval_s=1 / rate, ahead_s=burst / rate)
        if early_s is not None:
            booked.append(now + early_s)

    for first, start in enumerate(booked):
        for last in range(first + 1, len(booked)):
            assert last - first <= (booked[last] - start) * rate + 1e-6


def test_an_upstream_by_id_has_the_key_of_that_object() -> None:
    assert UpstreamUse(("upstream_id",), id="7").key("stream_routes/1/plugins/x") == "upstreams/7"


def test_an_upstream_on_the_spot_is_called_after_its_place() -> None:
    use = UpstreamUse(("rules", 0, "upstream"), options={})

    assert use.key("stream_routes/1/plugins/x") == "stream_routes/1/plugins/x/rules/0/upstream"


def test_a_plugin_uses_no_upstream_unless_it_says_so() -> None:
    plugin = Plugin(name="x", priority=1, options=str, build=lambda _, __: Hooks())

    assert list(plugin.upstreams("")) == []
