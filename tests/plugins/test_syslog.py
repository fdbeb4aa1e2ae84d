"""What a syslog server is told, and what may be said about it."""

from __future__ import annotations

import json
import os
import re

import pytest

from streamgw.core.batch import BatchPolicy, Collector, OverTCP, OverUDP
from streamgw.core.hooks import PluginServices
from streamgw.plugins.syslog import PLUGIN
from tests.support.plugins import Shelf, built, close, context, refusals, said_by_api, warnings

WHERE = {"host": "logs.test", "port": 514}


def test_a_message_is_that_of_rfc_5424() -> None:
    shelf = Shelf()

    close(built(PLUGIN, PluginServices(shipping=shelf), **WHERE, log_format={"ip": "$remote_addr"}))

    ((collector, message),) = shelf.shipped
    assert collector == Collector(to=OverTCP(host="logs.test", port=514))
    found = re.fullmatch(r"<46>1 (\S+) gw apisix (\d+) - - (\{.*\})", message.decode())
    assert found is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", found[1])
    assert int(found[2]) == os.getpid()
    assert json.loads(found[3]) == {"ip": "192.0.2.9", "route_id": ""}


def test_a_gateway_without_a_name_says_so() -> None:
    shelf = Shelf()
    nameless = context(PLUGIN, PluginServices(shipping=shelf), {"hostname": ""})

    close(PLUGIN.build(PLUGIN.options(**WHERE), nameless))

    assert b" - apisix " in shelf.shipped[0][1]


def test_the_options_say_where_and_when() -> None:
    shelf = Shelf()
    options = {
        "tls": True,
        "tls_verify": True,
        "timeout": 1500,
        "drop_limit": 9,
        "batch_max_size": 2,
        "inactive_timeout": 3,
        "buffer_duration": 4,
        "max_retry_count": 5,
        "retry_delay": 6,
    }

    close(built(PLUGIN, PluginServices(shipping=shelf), **WHERE, **options))

    policy = BatchPolicy(
        max_records=2, inactive_s=3, buffer_s=4, max_retries=5, retry_delay_s=6, pending_limit_bytes=9
    )
    assert shelf.shipped[0][0] == Collector(
        to=OverTCP(host="logs.test", port=514, tls=True, verify=True), timeout_s=1.5, policy=policy
    )


def test_udp_is_another_destination() -> None:
    shelf = Shelf()

    close(built(PLUGIN, PluginServices(shipping=shelf), **WHERE, sock_type="udp"))

    assert shelf.shipped[0][0].to == OverUDP(host="logs.test", port=514)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "a"}, "required"),
        ({**WHERE, "sock_type": "udp", "tls": True}, "tls: TLS needs sock_type: tcp"),
        ({**WHERE, "tls_verify": True}, "tls_verify: needs tls: true"),
        ({**WHERE, "log_format": "$remote_addr"}, "log_format: expected a mapping of names to texts"),
        ({**WHERE, "log_format": {"a": 1}}, "log_format.a: expected text, got 1"),
        ({**WHERE, "match": [[]] * 21}, "match: expected at most 20 entries"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    (found,) = refusals(PLUGIN, **options)

    assert said in found


def test_what_has_no_effect_is_warned_of() -> None:
    found = warnings(PLUGIN, **WHERE, tls=True, pool_size=5, flush_limit=1, log_format={"uri": "$uri"})

    assert [each.partition(":")[0] for each in found] == [
        "flush_limit",
        "pool_size",
        "tls",
        "log_format.uri",
    ]


def test_a_client_of_the_admin_api_hears_apisixs_words() -> None:
    assert said_by_api(PLUGIN, port=514) == 'property "host" is required'
