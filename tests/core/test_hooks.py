from __future__ import annotations

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


def test_an_upstream_by_id_has_the_key_of_that_object() -> None:
    assert UpstreamUse(("upstream_id",), id="7").key("stream_routes/1/plugins/x") == "upstreams/7"


def test_an_upstream_on_the_spot_is_called_after_its_place() -> None:
    use = UpstreamUse(("rules", 0, "upstream"), options={})

    assert use.key("stream_routes/1/plugins/x") == "stream_routes/1/plugins/x/rules/0/upstream"


def test_a_plugin_uses_no_upstream_unless_it_says_so() -> None:
    plugin = Plugin(name="x", priority=1, options=str, build=lambda _, __: Hooks())

    assert list(plugin.upstreams("")) == []
