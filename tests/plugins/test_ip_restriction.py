from __future__ import annotations

import pytest

from streamgw.core.errors import Rejected
from streamgw.plugins.ip_restriction import PLUGIN
from tests.support.plugins import built, decide, is_let_in, refusals, said_by_api
from tests.support.scenes import facts

ONE_SCHEMA = "value should match only one schema, but matches "


@pytest.mark.parametrize(
    ("host", "whitelisted", "blacklisted"),
    [
        ("10.1.2.3", True, False),
        ("192.0.2.7", True, False),
        ("192.0.2.8", False, True),
        ("2001:db8::1", True, False),
        ("2001:db9::1", False, True),
        ("unix:", False, True),
    ],
)
def test_a_list_of_networks_lets_in_or_keeps_out(host: str, whitelisted: bool, blacklisted: bool) -> None:
    networks = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]

    assert is_let_in(built(PLUGIN, whitelist=networks), facts(host)) is whitelisted
    assert is_let_in(built(PLUGIN, blacklist=networks), facts(host)) is blacklisted


def test_every_address_of_a_family_is_that_family_only() -> None:
    hooks = built(PLUGIN, whitelist=["0.0.0.0/0"])

    assert is_let_in(hooks, facts("203.0.113.1"))
    assert not is_let_in(hooks, facts("2001:db8::1"))


def test_the_log_gets_the_message_and_the_status() -> None:
    hooks = built(PLUGIN, blacklist=["192.0.2.9"], message="go away", response_code=404)

    with pytest.raises(Rejected, match="go away") as refused:
        decide(hooks)
    with pytest.raises(Rejected, match="Your IP address is not allowed") as by_default:
        decide(built(PLUGIN, blacklist=["192.0.2.9"]))

    assert (refused.value.status, by_default.value.status) == (404, 403)


def test_it_decides_before_any_handshake() -> None:
    assert built(PLUGIN, blacklist=["::/0"]).on_accept is not None


@pytest.mark.parametrize(
    ("options", "ours", "apisix"),
    [
        ({}, "expected exactly one of 'whitelist' and 'blacklist'", f"{ONE_SCHEMA}none"),
        (
            {"whitelist": ["::1"], "blacklist": ["::2"]},
            "expected exactly one of 'whitelist' and 'blacklist'",
            f"{ONE_SCHEMA}both schemas 1 and 2",
        ),
        (
            {"whitelist": ["127.0.0.1/33"]},
            "whitelist[0]: expected an IP address or CIDR, got '127.0.0.1/33'",
            'property "whitelist" validation failed: failed to validate item 1: object matches none of the required',
        ),
        (
            {"blacklist": ["::1", ":/8"]},
            "blacklist[1]: expected an IP address or CIDR, got ':/8'",
            "invalid ip address: :/8",
        ),
        (
            {"whitelist": []},
            "whitelist: expected at least one entry",
            'property "whitelist" validation failed: expect array to have at least 1 items',
        ),
        (
            {"whitelist": ["::1"], "response_code": 500},
            "response_code: expected an integer 403–404, got 500",
            'property "response_code" validation failed: expected 500 to be at most 404',
        ),
        (
            {"whitelist": ["::1"], "message": ""},
            "message: expected 1 to 1024 characters, got 0",
            'property "message" validation failed: string too short, expected at least 1, got 0',
        ),
    ],
)
def test_what_it_may_not_be_told(options: dict[str, object], ours: str, apisix: str) -> None:
    assert refusals(PLUGIN, **options) == [ours]
    assert said_by_api(PLUGIN, **options) == apisix
