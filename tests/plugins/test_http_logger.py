"""Where the batches go, and what may be said about it."""

from __future__ import annotations

import pytest

from streamgw.core.batch import Collector, OverHTTP
from streamgw.core.hooks import PluginServices
from streamgw.plugins.http_logger import PLUGIN
from tests.support.plugins import Shelf, built, close, refusals, said_by_api, warnings

URI = "https://logs.test/in"


def shipped(**options: object) -> Collector:
    shelf = Shelf()
    close(built(PLUGIN, PluginServices(shipping=shelf), **options))
    return shelf.shipped[0][0]


@pytest.mark.parametrize(
    ("uri", "to"),
    [
        ("http://logs.test", OverHTTP(host="logs.test", port=80)),
        ("https://logs.test", OverHTTP(host="logs.test", port=443, tls=True)),
        ("http://logs.test:65535/", OverHTTP(host="logs.test", port=65535)),
        (
            "http://[2001:db8::1]:8080/a/b?key=%20",
            OverHTTP(host="2001:db8::1", port=8080, target="/a/b?key=%20"),
        ),
        ("http://192.0.2.1?k=v", OverHTTP(host="192.0.2.1", port=80, target="/?k=v")),
    ],
)
def test_the_address_is_taken_apart(uri: str, to: OverHTTP) -> None:
    assert shipped(uri=uri) == Collector(to=to)


def test_the_options_say_how() -> None:
    collector = shipped(
        uri=URI, auth_header="Bearer x", ssl_verify=False, concat_method="new_line", timeout=7
    )

    to = OverHTTP(
        host="logs.test",
        port=443,
        tls=True,
        verify=False,
        target="/in",
        authorization="Bearer x",
        form="lines",
    )
    assert (collector.to, collector.timeout_s) == (to, 7)


@pytest.mark.parametrize("concat_method", ["json", "new_line"])
def test_a_batch_of_one_is_the_record_itself(concat_method: str) -> None:
    collector = shipped(uri=URI, batch_max_size=1, concat_method=concat_method)

    assert isinstance(collector.to, OverHTTP)
    assert collector.to.form == "object"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "logs.test/in",
        "ftp://logs.test",
        "http://",
        "http://user:pass@logs.test",
        "http://logs.test:0",
        "http://logs.test:65536",
        "http://logs.test/a b",
        "http://logs.test/\r\nX: y",
        "http://logs.test/#part",
        "http://logs.test/ä",
        "http://logs.test\n",
        "http://logs.test/" + "a" * 8192,
        1,
    ],
)
def test_no_other_address_is_taken_and_none_is_shown(uri: object) -> None:
    assert refusals(PLUGIN, uri=uri) == ["uri: expected an address like https://logs.example/in"]


@pytest.mark.parametrize("header", ["", " x", "x ", "Bearer x\r\nX: y", "x\n", "ä", "x" * 8193, 1])
def test_a_header_is_one_header_and_is_not_shown(header: object) -> None:
    assert refusals(PLUGIN, uri=URI, auth_header=header) == [
        "auth_header: expected what may stand in a header: printable ASCII"
    ]


def test_what_is_risky_or_has_no_effect_is_warned_of() -> None:
    assert warnings(PLUGIN, uri=URI, auth_header="x") == []
    assert warnings(PLUGIN, uri=URI, ssl_verify=False, include_req_body=True) == [
        "ssl_verify: whoever answers is believed: the server's certificate is not verified",
        "include_req_body: does nothing at layer 4",
    ]
    assert warnings(PLUGIN, uri="http://logs.test", auth_header="x") == [
        "auth_header: is sent in the clear: the address is not https"
    ]


def test_a_client_of_the_admin_api_hears_apisixs_words() -> None:
    assert said_by_api(PLUGIN) == 'property "uri" is required'
    assert said_by_api(PLUGIN, uri=URI, concat_method="x") == (
        'property "concat_method" validation failed: matches none of the enum values'
    )
