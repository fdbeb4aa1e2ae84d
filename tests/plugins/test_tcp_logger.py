"""Where the lines go, and what may be said about it."""

from __future__ import annotations

import json

import pytest

from streamgw.core.batch import BatchPolicy, Collector, OverTCP
from streamgw.core.hooks import PluginServices
from streamgw.plugins.tcp_logger import PLUGIN
from tests.support.plugins import Shelf, built, close, refusals, said_by_api, warnings

WHERE = {"host": "logs.test", "port": 5000}


def shipped(**options: object) -> tuple[Collector, bytes]:
    shelf = Shelf()
    close(built(PLUGIN, PluginServices(shipping=shelf), **WHERE, **options))
    (found,) = shelf.shipped
    return found


def test_a_record_is_json_for_a_connection_to_the_host() -> None:
    collector, record = shipped(log_format={"ip": "$remote_addr"})

    assert collector == Collector(to=OverTCP(host="logs.test", port=5000), timeout_s=1)
    assert json.loads(record) == {"ip": "192.0.2.9", "route_id": ""}


def test_the_options_say_how_and_when() -> None:
    collector, _ = shipped(
        tls=True,
        tls_options="collector.test",
        tls_verify=True,
        timeout=1500,
        batch_max_size=2,
        inactive_timeout=3,
        buffer_duration=4,
        max_retry_count=5,
        retry_delay=6,
        drop_limit=9,
    )

    policy = BatchPolicy(
        max_records=2, inactive_s=3, buffer_s=4, max_retries=5, retry_delay_s=6, pending_limit_bytes=9
    )
    to = OverTCP(host="logs.test", port=5000, tls=True, verify=True, server_name="collector.test")
    assert collector == Collector(to=to, timeout_s=1.5, policy=policy)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 1}, "host: is required"),
        ({**WHERE, "port": 0}, "port: expected an integer 1–65535, got 0"),
        ({**WHERE, "tls_verify": True}, "tls_verify: needs tls: true"),
        ({**WHERE, "timeout": 0}, "timeout: expected an integer ≥ 1, got 0"),
        ({**WHERE, "uri": "/"}, "uri: unknown field"),
        ({**WHERE, "match": [[]] * 21}, "match: expected at most 20 entries"),
        ({**WHERE, "match": [[["a", "?", 1]]]}, "match[0]: failed to validate the 'match' expression"),
        ({**WHERE, "include_req_body_expr": "x"}, "include_req_body_expr: expected a list, got 'x'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    (found,) = refusals(PLUGIN, **options)

    assert found.startswith(said)


def test_what_has_no_effect_is_warned_of() -> None:
    assert warnings(PLUGIN, **WHERE) == []
    assert warnings(PLUGIN, **WHERE, tls_options="a", include_req_body=True) == [
        "tls_options: does nothing without tls: true",
        "include_req_body: does nothing at layer 4",
    ]
    assert warnings(PLUGIN, **WHERE, tls=True) == [
        "tls: whoever answers is believed: the server's certificate is not verified (tls_verify)"
    ]
    assert warnings(PLUGIN, **WHERE, tls=True, tls_verify=True) == []


def test_a_client_of_the_admin_api_hears_apisixs_words() -> None:
    assert said_by_api(PLUGIN, host="a") == 'property "port" is required'
    assert said_by_api(PLUGIN, **WHERE, timeout=0) == (
        'property "timeout" validation failed: expected 0 to be at least 1'
    )
