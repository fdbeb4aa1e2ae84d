"""What is not shown of objects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.hidden import masked, secrets_in, without_keys, without_secrets
from tests.support.key_places import MARK, PLACES

HUSH = "hush-hush"


def anything(keys: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """Plain data, with keys in it at any depth."""
    names = st.sampled_from(["tls", "upstream", "client_cert", "key", "x"])
    return st.recursive(
        st.integers() | st.just("shown") | st.just({}) | keys,
        lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=3),
        max_leaves=10,
    )


TEXT = st.sampled_from([HUSH, f"-----BEGIN {HUSH}", f"$ {HUSH}"])
KEYS = st.fixed_dictionaries({"client_key": TEXT | st.lists(TEXT)}, optional={"verify": st.booleans()})


@given(plugins=anything(KEYS), tls=KEYS)
def test_wherever_a_key_stands_it_is_not_shown(plugins: Any, tls: dict[str, Any]) -> None:
    data = {"plugins": plugins, "upstream": {"tls": tls}}

    shown = [show("stream_routes", data) for show in (without_keys, without_secrets, masked)]

    assert HUSH not in json.dumps(shown)


@given(data=st.dictionaries(st.sampled_from(["tls", "plugins", "id"]), anything(st.just({}))))
def test_everything_else_is(data: dict[str, Any]) -> None:
    for show in (without_keys, without_secrets, masked):
        assert show("upstreams", data) == data


@pytest.mark.parametrize("place", PLACES)
def test_real_keys_are_not_shown(place: str) -> None:
    (collection, _), data = PLACES[place]

    for show in (without_keys, without_secrets, masked):
        shown = json.dumps(show(collection, data))
        assert MARK not in shown
        assert "BEGIN CERTIFICATE" in shown


def test_of_a_certificate_the_key_has_a_short_name() -> None:
    ssl = {"cert": "c", "key": HUSH, "certs": ["d"], "keys": [HUSH], "snis": ["a"]}

    assert without_keys("ssls", ssl) == {"cert": "c", "certs": ["d"], "snis": ["a"]}
    assert without_keys("upstreams", {"key": "remote_addr"}) == {"key": "remote_addr"}


def test_references_are_shown_where_something_stands_in_for_keys() -> None:
    ssl = {"key": "$file://a.key", "keys": ["$env://K", HUSH], "client": {"client_key": "$env://C"}}

    assert masked("ssls", ssl) == {
        "key": "$file://a.key",
        "keys": ["$env://K", "***"],
        "client": {"client_key": "$env://C"},
    }
    assert without_keys("ssls", ssl) == {"client": {}}


def test_credentials_are_for_those_who_may_write_them() -> None:
    """A client that writes what it has read, as the dashboard does, would lose what is optional."""
    data = {"plugins": {"http-logger": {"uri": "https://a", "auth_header": HUSH}}}

    assert without_keys("stream_routes", data) == data
    assert without_secrets("stream_routes", data) == {"plugins": {"http-logger": {"uri": "https://a"}}}
    assert masked("stream_routes", data)["plugins"]["http-logger"]["auth_header"] == "***"


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (b"key: |\n  -----BEGIN EC PRIVATE KEY-----\n", {"keys"}),
        (b'"client_key": "-----BEGIN PRIVATE KEY-----\\nMII"', {"keys"}),
        (b"auth_header: Bearer x", {"credentials"}),
        (b'{"auth_header" : "Bearer x"}', {"credentials"}),
        (b"'auth_header': 'Bearer x'", {"credentials"}),
        (b'auth_header: "$1mple"', {"credentials"}),
        (b"auth_header: Bearer x\nkey: -----BEGIN PRIVATE KEY-----", {"keys", "credentials"}),
        (b"auth_header: $env://TOKEN", set()),
        (b"auth_header: '$env://TOKEN'", set()),
        (b'{"auth_header":  "$env://TOKEN"}', set()),
        (b"key: $file://a.key\ncert: -----BEGIN CERTIFICATE-----", set()),
    ],
)
def test_a_file_with_a_secret_in_it_is_known(content: bytes, kinds: set[str]) -> None:
    assert secrets_in(content) == kinds
