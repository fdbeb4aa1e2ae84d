from __future__ import annotations

from typing import Annotated

import attrs
import pytest

from streamgw.config.strict import Wrong, structure
from streamgw.plugins.options import InlineUpstream, above_zero, does_nothing, too_few, unknown_variables


@attrs.frozen(kw_only=True)
class Options:
    count: Annotated[int, above_zero] = 1
    upstream: InlineUpstream | None = None


def test_a_plugin_declares_its_options_with_the_rules_of_files() -> None:
    assert structure({"count": 2, "upstream": {"nodes": {}}}, Options) == Options(
        count=2, upstream={"nodes": {}}
    )
    with pytest.raises(Wrong) as wrong:
        structure({"count": 0, "upstream": 1}, Options)

    assert [fault.words for fault in wrong.value.faults] == [
        'property "count" validation failed: expected 0 to be greater than 0',
        'property "upstream" validation failed: wrong type: expected object, got number',
    ]


def test_an_empty_list_is_told_as_apisix_tells_it() -> None:
    assert too_few("list").words == 'property "list" validation failed: expect array to have at least 1 items'


def test_what_means_nothing_is_named_if_it_is_there() -> None:
    found = list(does_nothing(Options(count=1), "count", "upstream"))

    assert [(fault.path, fault.message) for fault in found] == [(("count",), "does nothing at layer 4")]


def test_variables_of_http_are_named() -> None:
    names = frozenset({"uri", "remote_addr", "route_id", "hostname", "arg_x"})

    assert [fault.message for fault in unknown_variables(names, ("key",))] == [
        "no variable 'arg_x' at layer 4: it never has a value",
        "no variable 'uri' at layer 4: it never has a value",
    ]
