"""Where the datagrams go, and what may be said about it."""

from __future__ import annotations

import json

import pytest

from streamgw.core.batch import Collector, OverUDP
from streamgw.core.hooks import PluginServices
from streamgw.plugins.udp_logger import PLUGIN
from tests.support.plugins import Shelf, built, close, refusals, said_by_api, warnings

WHERE = {"host": "logs.test", "port": 5000}


def test_a_record_is_json_for_a_datagram_and_the_timeout_is_in_seconds() -> None:
    shelf = Shelf()

    close(
        built(PLUGIN, PluginServices(shipping=shelf), **WHERE, timeout=2, log_format={"ip": "$remote_addr"})
    )

    ((collector, record),) = shelf.shipped
    assert collector == Collector(to=OverUDP(host="logs.test", port=5000), timeout_s=2)
    assert json.loads(record) == {"ip": "192.0.2.9", "route_id": ""}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "a"}, "port: is required"),
        ({**WHERE, "timeout": 0.5}, "timeout: expected an integer ≥ 1, got 0.5"),
        ({**WHERE, "tls": True}, "tls: unknown field"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    (found,) = refusals(PLUGIN, **options)

    assert found.startswith(said)


def test_what_has_no_effect_is_warned_of() -> None:
    assert warnings(PLUGIN, **WHERE, include_resp_body=True) == ["include_resp_body: does nothing at layer 4"]


def test_a_client_of_the_admin_api_hears_apisixs_words() -> None:
    assert said_by_api(PLUGIN, port=1) == 'property "host" is required'
