from __future__ import annotations

import attrs
import pytest

from streamgw.core.model import Address, Facts
from streamgw.plugins import BUILT_IN
from streamgw.plugins.real_ip import PLUGIN
from tests.support.plugins import CLIENT, built, decide, refusals, said_by_api
from tests.support.scenes import facts

NAMED = Address("203.0.113.7", 5000)
BEHIND = attrs.evolve(CLIENT, claimed=NAMED)


def test_the_header_of_a_trusted_peer_names_the_client() -> None:
    found = decide(built(PLUGIN, trusted_addresses=["192.0.2.0/24"]), BEHIND)

    assert isinstance(found, Facts)
    assert (found.client, found.peer, found.claimed) == (NAMED, CLIENT.client, None)


@pytest.mark.parametrize(
    "told",
    [BEHIND, CLIENT, attrs.evolve(facts("unix:"), claimed=NAMED)],
    ids=["stranger", "no-header", "unix"],
)
def test_nobody_else_is_believed(told: Facts) -> None:
    assert decide(built(PLUGIN, trusted_addresses=["10.0.0.0/8"]), told) is None


def test_it_comes_before_whoever_restricts_or_counts_by_address() -> None:
    assert all(PLUGIN.priority >= plugin.priority for plugin in BUILT_IN.values())


def test_what_it_may_not_be_told() -> None:
    assert refusals(PLUGIN) == ["trusted_addresses: is required"]
    assert said_by_api(PLUGIN, trusted_addresses=[]) == (
        'property "trusted_addresses" validation failed: expect array to have at least 1 items'
    )
