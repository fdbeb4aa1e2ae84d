from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

import attrs
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from streamgw.core import router as router_module
from streamgw.core.model import (
    UNIX_HOST,
    Address,
    Facts,
    Match,
    Network,
    PortRange,
    PrereadPlan,
    Route,
    Source,
)
from streamgw.core.networks import parse_host
from streamgw.core.router import Router, why_not

LINES = itertools.count(1)


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Addresses parsed for another test must not be the reason why this one passes."""
    parse_host.cache_clear()


def route(
    name: str,
    *,
    remote: str = "",
    server: str = "",
    ports: str = "",
    sni: str = "",
    alpn: str = "",
) -> Route:
    """A route from words: `remote="10.0.0.0/8 ::1"`, `ports="80 9000-9100"`."""
    match = Match(
        remote_addrs=tuple(ip_network(text) for text in remote.split()),
        server_addrs=tuple(ip_network(text) for text in server.split()),
        server_ports=tuple(port_range(text) for text in ports.split()),
        server_names=tuple(sni.split()),
        alpn=tuple(alpn.split()),
    )
    return Route(name, match, None, Source("routes.d/a.yaml", next(LINES)))


def port_range(text: str) -> PortRange:
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def client(
    remote: str = "10.1.2.3",
    *,
    server: str = "127.0.0.1",
    port: int = 9100,
    sni: str | None = None,
    alpn: str = "",
) -> Facts:
    return Facts(
        "tcp",
        "tcp *:9100",
        Address(remote, 40000),
        Address(server, port),
        server_name=sni,
        alpn=tuple(alpn.split()),
    )


def winner(routes: list[Route], facts: Facts) -> str | None:
    """The answer of the index, after a look that the explanation agrees."""
    router = Router(routes)
    found = router.match(facts)
    explanation = router.explain(facts)
    assert explanation.winner == found
    assert [verdict.route for verdict in explanation.verdicts if verdict.wins] == ([found] if found else [])
    return found.id if found else None


def test_without_routes_nobody_matches() -> None:
    assert winner([], client()) is None


def test_no_route_asks_for_a_byte_of_the_client_that_its_listener_did_not_ask_for() -> None:
    assert Router([route("any")]).plan(client()) is PrereadPlan.NONE
    assert Router([route("named", sni="*", alpn="h2")]).plan(client()) is PrereadPlan.NONE


def test_the_first_that_matches_wins_however_precise_a_later_one_is() -> None:
    everyone, precise = (
        route("everyone"),
        route("precise", remote="10.1.2.3", server="127.0.0.1", ports="9100"),
    )

    assert winner([everyone, precise], client()) == "everyone"
    assert winner([precise, everyone], client()) == "precise"


def test_a_later_route_of_an_earlier_shape_does_not_overtake() -> None:
    routes = [route("9101", ports="9101"), route("everyone"), route("9100", ports="9100")]

    assert winner(routes, client(port=9100)) == "everyone"
    assert winner(routes, client(port=9101)) == "9101"


@pytest.mark.parametrize(
    ("fields", "facts", "matches"),
    [
        ({"ports": "9100"}, client(port=9100), True),
        ({"ports": "9100"}, client(port=9101), False),
        ({"ports": "9000-9100 9200"}, client(port=9000), True),
        ({"ports": "9000-9100 9200"}, client(port=9200), True),
        ({"ports": "9000-9100 9200"}, client(port=9101), False),
        ({"ports": "1-65535"}, client(port=65535), True),
        ({"ports": "1-65535"}, client(port=1), True),
        ({"ports": "1-65535"}, client(UNIX_HOST, server=UNIX_HOST, port=0), False),
        ({"ports": "0-65535"}, client(UNIX_HOST, server=UNIX_HOST, port=0), True),
        ({"server": "127.0.0.1"}, client(server="127.0.0.1"), True),
        ({"server": "127.0.0.1"}, client(server="127.0.0.2"), False),
        ({"server": "127.0.0.0/8"}, client(server="127.9.9.9"), True),
        ({"server": "::1"}, client("::1", server="::1"), True),
        ({"remote": "10.0.0.0/8"}, client("10.255.0.1"), True),
        ({"remote": "10.0.0.0/8"}, client("11.0.0.1"), False),
        ({"remote": "192.168.0.0/16 10.0.0.0/8"}, client("10.0.0.1"), True),
        ({"remote": "fd00::/8"}, client("fd12::1"), True),
        ({"remote": "fd00::/8"}, client("fe80::1"), False),
        ({"remote": "10.0.0.0/8", "ports": "9100"}, client("10.0.0.1", port=9100), True),
        ({"remote": "10.0.0.0/8", "ports": "9100"}, client("10.0.0.1", port=9101), False),
        ({"remote": "10.0.0.0/8", "ports": "9100"}, client("11.0.0.1", port=9100), False),
    ],
)
def test_fields_are_anded_and_their_entries_ored(
    fields: dict[str, str], facts: Facts, *, matches: bool
) -> None:
    assert winner([route("it", **fields)], facts) == ("it" if matches else None)


@pytest.mark.parametrize("remote", ["0.0.0.0/0", "::/0"])
def test_a_network_holds_only_its_own_family_and_no_unix_peer(remote: str) -> None:
    routes = [route("it", remote=remote)]

    assert winner(routes, client("10.1.2.3")) == ("it" if "." in remote else None)
    assert winner(routes, client("fd00::1")) == ("it" if ":" in remote else None)
    assert winner(routes, client(UNIX_HOST, server=UNIX_HOST, port=0)) is None


def test_a_unix_peer_matches_a_route_that_asks_for_no_address() -> None:
    routes = [route("local", server="127.0.0.1"), route("everyone")]

    assert winner(routes, client(UNIX_HOST, server=UNIX_HOST, port=0)) == "everyone"


def test_a_route_with_server_names_is_for_clients_that_send_one() -> None:
    routes = [route("named", sni="*"), route("plain")]

    assert winner(routes, client()) == "plain"
    assert winner(routes, client(sni="db.example")) == "named"


def test_named_routes_go_before_plain_ones_and_precise_names_before_wildcards() -> None:
    routes = [
        route("plain"),
        route("any name", sni="*"),
        route("below", sni="*.test.com"),
        route("at or below", sni="*test.com"),
        route("exact", sni="a.test.com"),
    ]

    assert winner(routes, client(sni="a.test.com")) == "exact"
    assert winner(routes, client(sni="b.a.test.com")) == "below"
    assert winner(routes, client(sni="test.com")) == "at or below"
    assert winner(routes, client(sni="else.where")) == "any name"
    assert winner(routes, client()) == "plain"


def test_when_no_route_under_a_name_fits_the_next_shorter_pattern_gets_its_turn() -> None:
    routes = [
        route("first under exact", sni="a.test.com", ports="1"),
        route("second under exact", sni="a.test.com", ports="2"),
        route("wildcard", sni="*.test.com", ports="3"),
        route("plain"),
    ]

    assert winner(routes, client(sni="a.test.com", port=2)) == "second under exact"
    assert winner(routes, client(sni="a.test.com", port=3)) == "wildcard"
    assert winner(routes, client(sni="a.test.com", port=4)) == "plain"
    assert winner(routes[:3], client(sni="a.test.com", port=4)) is None


def test_a_route_with_several_server_names_answers_to_each() -> None:
    routes = [route("both", sni="a.test.com *.test.com"), route("b", sni="b.test.com")]

    assert winner(routes, client(sni="a.test.com")) == "both"
    assert winner(routes, client(sni="b.test.com")) == "b"
    assert winner(routes, client(sni="c.test.com")) == "both"
    assert len(Router(routes).explain(client(sni="a.test.com")).verdicts) == 2


@pytest.mark.parametrize(
    ("offered", "matches"), [("mqtt", True), ("h2 mqtt", True), ("mqtt/5", True), ("h2", False), ("", False)]
)
def test_a_route_with_alpn_is_for_clients_that_offer_one_of_its_protocols(
    offered: str, *, matches: bool
) -> None:
    named, plain = route("it", sni="*", alpn="mqtt mqtt/5"), route("it", alpn="mqtt mqtt/5")

    assert winner([named], client(sni="a.test.com", alpn=offered)) == ("it" if matches else None)
    assert winner([plain], client(sni="a.test.com", alpn=offered)) == ("it" if matches else None)
    assert winner([plain], client(alpn=offered)) == ("it" if matches else None)


def test_alpn_is_one_field_more_and_changes_nothing_about_the_order() -> None:
    routes = [
        route("h2 on 9100", alpn="h2", ports="9100"),
        route("everyone on 9101", ports="9101"),
        route("h2 anywhere", alpn="h2"),
        route("mqtt below", sni="*.test.com", alpn="mqtt"),
        route("any name", sni="*"),
    ]

    assert winner(routes, client(port=9100, alpn="mqtt h2")) == "h2 on 9100"
    assert winner(routes, client(port=9101, alpn="h2")) == "everyone on 9101"
    assert winner(routes, client(port=9102, alpn="h2")) == "h2 anywhere"
    assert winner(routes, client(port=9102)) is None
    assert winner(routes, client(sni="a.test.com", alpn="h2 mqtt")) == "mqtt below"
    assert winner(routes, client(sni="a.test.com", alpn="h2")) == "any name"


def test_among_thousands_of_offered_protocols_the_order_of_the_routes_decides() -> None:
    offered = " ".join(f"p{number}" for number in range(5000))
    routes = [
        route("mqtt", alpn="mqtt"),
        route("late", alpn="p4999"),
        route("early", alpn="p1"),
        route("rest"),
    ]

    assert winner(routes, client(alpn=offered)) == "late"


# 40 × 40 addresses: more boxes than a route is multiplied out into.
MANY_SERVERS = " ".join(f"127.0.0.{last}" for last in range(40))
MANY_CLIENTS = " ".join(f"10.0.0.{last}" for last in range(39)) + " 192.168.0.0/16"


def test_a_route_with_very_long_lists_keeps_its_place_in_the_order() -> None:
    wide = route("wide", server=MANY_SERVERS, remote=MANY_CLIENTS)
    before, after = route("before", remote="10.0.0.7"), route("after")
    wider = route("wider", server=MANY_SERVERS, remote=f"{MANY_CLIENTS} 10.9.9.9")
    routes = [before, wide, wider, after]

    assert winner(routes, client("10.0.0.7", server="127.0.0.3")) == "before"
    assert winner(routes, client("10.0.0.8", server="127.0.0.3")) == "wide"
    assert winner(routes, client("192.168.3.4", server="127.0.0.3")) == "wide"
    assert winner(routes, client("10.9.9.9", server="127.0.0.3")) == "wider"
    assert winner(routes, client("10.0.0.8", server="127.0.0.99")) == "after"
    assert winner(routes, client("fd00::1", server="127.0.0.3")) == "after"
    assert winner(routes, client(UNIX_HOST, server=UNIX_HOST)) == "after"


def test_a_route_with_very_long_lists_answers_only_to_its_server_names() -> None:
    routes = [
        route("wide", server=MANY_SERVERS, remote=MANY_CLIENTS, sni="a.test.com"),
        route("any", sni="*"),
    ]

    assert winner(routes, client("10.0.0.8", sni="a.test.com")) == "wide"
    assert winner(routes, client("10.0.0.8", sni="b.test.com")) == "any"


def test_a_route_with_very_long_lists_answers_only_to_its_protocols() -> None:
    routes = [route("wide", server=MANY_SERVERS, remote=MANY_CLIENTS, alpn="h2"), route("any")]

    assert winner(routes, client("10.0.0.8", alpn="h2")) == "wide"
    assert winner(routes, client("10.0.0.8", alpn="mqtt")) == "any"
    assert winner(routes, client("10.0.0.8")) == "any"


def explanation(routes: list[Route], facts: Facts) -> list[tuple[str, str]]:
    return [(verdict.route.id, verdict.why) for verdict in Router(routes).explain(facts).verdicts]


def test_explain_says_of_every_route_what_stood_in_the_way() -> None:
    mysql = attrs.evolve(route("mysql", ports="9100"), source=Source("routes.d/a.yaml", 3))
    routes = [
        route("port", ports="3306"),
        route("ports", ports="1 2-3"),
        route("network", remote="192.168.0.0/16"),
        route("host", remote="10.1.2.4"),
        route("server", server="127.0.0.2"),
        route("all of it", server="::/0", remote="::1 fd00::/8", ports="1"),
        route("named", sni="a.test.com b.test.com"),
        route("protocol", alpn="mqtt h2"),
        mysql,
        route("rest"),
    ]

    assert explanation(routes, client()) == [
        ("port", "server_port 9100 is not 3306"),
        ("ports", "server_port 9100 is not 1 or 2-3"),
        ("network", "remote_addr 10.1.2.3 is not in 192.168.0.0/16"),
        ("host", "remote_addr 10.1.2.3 is not 10.1.2.4"),
        ("server", "server_addr 127.0.0.1 is not 127.0.0.2"),
        (
            "all of it",
            "server_port 9100 is not 1; server_addr 127.0.0.1 is not in ::/0; "
            "remote_addr 10.1.2.3 is not ::1 or in fd00::/8",
        ),
        ("protocol", "alpn none is not mqtt or h2"),
        ("mysql", "wins"),
        ("rest", "would match, but routes.d/a.yaml:3 (route mysql) comes first"),
        ("named", "has sni a.test.com or b.test.com; the client sent none"),
    ]


def test_explain_tries_the_names_in_the_order_of_their_precision() -> None:
    routes = [
        route("plain"),
        route("wildcard", sni="*.test.com"),
        route("other", sni="b.test.com"),
        route("exact", sni="a.test.com", ports="1"),
    ]

    found = explanation(routes, client(sni="a.test.com"))

    assert [name for name, _ in found] == ["exact", "wildcard", "plain", "other"]
    assert dict(found)["exact"] == "server_port 9100 is not 1"
    assert dict(found)["wildcard"] == "wins"
    assert dict(found)["other"] == "has sni b.test.com; the client sent a.test.com"


def test_explain_says_what_was_offered_instead() -> None:
    why = why_not(route("it", alpn="mqtt", ports="1"), client(alpn="h2 http/1.1"))

    assert why == "server_port 9100 is not 1; alpn h2 or http/1.1 is not mqtt"


def test_a_message_lists_a_few_entries_and_counts_the_rest() -> None:
    why = why_not(route("it", remote=MANY_CLIENTS), client())

    assert why == "remote_addr 10.1.2.3 is not 10.0.0.0 or 10.0.0.1 or 10.0.0.2 or 10.0.0.3 or one of 36 more"


def shadows(*routes: Route) -> list[tuple[str, str]]:
    return [(hidden.id, hider.id) for hidden, hider in Router(routes).shadowed()]


def test_a_catch_all_hides_what_comes_after_it_and_not_what_came_before() -> None:
    routes = route("9100", ports="9100"), route("everyone"), route("9101", ports="9101"), route("later")

    assert shadows(*routes) == [("9101", "everyone"), ("later", "everyone")]


@pytest.mark.parametrize(
    ("earlier", "later", "hidden"),
    [
        ({"ports": "9100"}, {"ports": "9100"}, True),
        ({"ports": "9000-9100"}, {"ports": "9001-9099"}, True),
        ({"ports": "9000-9050 9051-9100"}, {"ports": "9001-9099"}, True),
        ({"ports": "9000-9100"}, {"ports": "9001-9101"}, False),
        ({"ports": "9100"}, {"ports": "9100", "remote": "10.0.0.0/8"}, True),
        ({"ports": "9100", "remote": "10.0.0.0/8"}, {"ports": "9100"}, False),
        ({"remote": "10.0.0.0/8"}, {"remote": "10.1.0.0/16 10.2.0.0/16"}, True),
        ({"remote": "10.0.0.0/8"}, {"remote": "10.1.0.0/16 11.0.0.0/8"}, False),
        ({"remote": "0.0.0.0/0"}, {"remote": "::1"}, False),
        ({"server": "127.0.0.0/8"}, {"server": "127.0.0.1"}, True),
        ({"server": "127.0.0.1"}, {"server": "127.0.0.0/8"}, False),
        ({"server": "127.0.0.0/8"}, {"server": "::1"}, False),
        ({"sni": "*.test.com"}, {"sni": "*.test.com", "ports": "1"}, True),
        ({"sni": "*.test.com"}, {"sni": "a.test.com"}, False),
        ({"sni": "a.test.com b.test.com"}, {"sni": "b.test.com"}, True),
        ({"sni": "a.test.com"}, {"sni": "a.test.com b.test.com"}, False),
        ({"sni": "*"}, {}, False),
        ({}, {"sni": "a.test.com"}, False),
        ({"alpn": "h2"}, {"alpn": "h2", "ports": "1"}, True),
        ({"alpn": "h2 mqtt"}, {"alpn": "mqtt"}, True),
        ({"alpn": "h2"}, {"alpn": "h2 mqtt"}, False),
        ({"alpn": "h2"}, {}, False),
        ({}, {"alpn": "h2"}, True),
        ({"ports": "9100"}, {"alpn": "h2"}, False),
        ({"sni": "*"}, {"sni": "*", "alpn": "h2"}, True),
        ({"sni": "*", "alpn": "h2"}, {"sni": "*"}, False),
        ({}, {"server": MANY_SERVERS, "remote": MANY_CLIENTS, "alpn": "h2 mqtt"}, True),
        ({"alpn": "h2"}, {"server": MANY_SERVERS, "remote": MANY_CLIENTS, "alpn": "h2 mqtt"}, False),
        (
            {"server": MANY_SERVERS, "remote": MANY_CLIENTS},
            {"server": "127.0.0.1", "remote": "10.0.0.1", "alpn": "h2"},
            True,
        ),
        (
            {"server": MANY_SERVERS, "remote": MANY_CLIENTS},
            {"server": "127.0.0.1", "remote": "10.0.0.1"},
            True,
        ),
        (
            {"server": MANY_SERVERS, "remote": MANY_CLIENTS},
            {"server": "127.0.0.1", "remote": "10.0.9.1"},
            False,
        ),
        ({"remote": "10.0.0.0/8"}, {"server": MANY_SERVERS, "remote": MANY_CLIENTS}, False),
        ({"server": "127.0.0.0/8"}, {"server": MANY_SERVERS, "remote": MANY_CLIENTS}, True),
    ],
)
def test_a_route_is_hidden_when_an_earlier_one_covers_all_it_matches(
    earlier: dict[str, str], later: dict[str, str], *, hidden: bool
) -> None:
    assert shadows(route("earlier", **earlier), route("later", **later)) == (
        [("later", "earlier")] if hidden else []
    )


def test_of_several_hiding_routes_the_one_that_hides_most_is_named() -> None:
    routes = (
        route("one", remote="10.1.0.0/16"),
        route("two", remote="10.2.0.0/15"),
        route("hidden", remote="10.1.0.0/16 10.2.0.0/16 10.3.0.0/16"),
    )

    assert shadows(*routes) == [("hidden", "two")]


def test_routes_that_each_hide_one_protocol_hide_a_route_together() -> None:
    routes = route("h2", alpn="h2"), route("mqtt", alpn="mqtt"), route("hidden", alpn="mqtt h2")

    assert shadows(*routes) == [("hidden", "h2")]


# Few enough addresses and ports that routes overlap, nest and miss in every way.
HOSTS = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.5",
    "10.0.1.1",
    "11.0.0.1",
    "fd00::1",
    "fd00::2",
    "fd00:1::1",
    UNIX_HOST,
]
NAMES = [None, "a.x", "b.a.x", "x", "ax", "y"]
PROTOCOLS = ["h2", "mqtt", "é"]
PORTS = [0, 1, 2, 3, 8, 9, 80, 65534, 65535]

ports = st.sampled_from(PORTS)
hosts = st.sampled_from(HOSTS)
networks = st.builds(
    lambda host, bits: ip_network(f"{host}/{bits if '.' in host else bits * 4}", strict=False),
    st.sampled_from(HOSTS[:-1]),
    st.sampled_from([0, 7, 8, 24, 29, 30, 31, 32]),
)
LONG_LIST = tuple(ip_network(f"10.0.{third}.{last}") for third in (0, 1) for last in range(17))
few_networks = st.lists(networks, max_size=2).map(tuple)
network_lists = st.one_of(few_networks, few_networks, few_networks, st.just(LONG_LIST))
matches = st.builds(
    Match,
    remote_addrs=network_lists,
    server_addrs=network_lists,
    server_ports=st.lists(
        st.builds(lambda a, b: PortRange(min(a, b), max(a, b)), ports, ports), max_size=2
    ).map(tuple),
    server_names=st.lists(st.sampled_from(["a.x", "*.x", "*x", "*", "y"]), max_size=2, unique=True).map(
        tuple
    ),
    alpn=st.lists(st.sampled_from(PROTOCOLS), max_size=2, unique=True).map(tuple),
)
route_lists = st.lists(matches, max_size=8).map(
    lambda found: [Route(str(at), match, None, Source("a.yaml", at + 1)) for at, match in enumerate(found)]
)
facts_of_clients = st.builds(
    lambda remote, server, port, name, alpn: client(remote, server=server, port=port, sni=name, alpn=alpn),
    hosts,
    hosts,
    ports,
    st.sampled_from(NAMES),
    st.lists(st.sampled_from([*PROTOCOLS, "other"]), max_size=3).map(" ".join),
)


@given(route_lists, st.lists(facts_of_clients, min_size=1, max_size=8))
def test_the_index_answers_what_asking_every_route_answers(routes: list[Route], clients: list[Facts]) -> None:
    router = Router(routes)

    for facts in clients:
        asked = router.explain(facts)

        event("somebody wins" if asked.winner else "nobody wins")
        assert router.match(facts) is asked.winner
        assert {verdict.route.id for verdict in asked.verdicts} == {route.id for route in routes}


def holds(networks: tuple[Network, ...], host: str) -> bool:
    return not networks or (host != UNIX_HOST and any(ip_address(host) in network for network in networks))


@given(matches, facts_of_clients)
def test_why_not_is_silent_exactly_when_the_rules_are_met(match: Match, facts: Facts) -> None:
    """The rules once more, by the standard library's own idea of networks."""
    name = facts.server_name
    met = (
        holds(match.remote_addrs, facts.client.host)
        and holds(match.server_addrs, facts.server.host)
        and (
            not match.server_ports or any(p.first <= facts.server.port <= p.last for p in match.server_ports)
        )
        and (
            not match.server_names
            or (
                name is not None
                and any(n == name or (n[0] == "*" and name.endswith(n[1:])) for n in match.server_names)
            )
        )
        and (not match.alpn or any(protocol in facts.alpn for protocol in match.alpn))
    )

    assert (why_not(Route("it", match, None, Source("a.yaml", 1)), facts) is None) is met


@given(route_lists, route_lists, st.lists(facts_of_clients, min_size=1, max_size=8), st.data())
def test_what_is_taken_over_from_the_router_before_changes_no_answer(
    routes: list[Route], others: list[Route], clients: list[Facts], data: st.DataObject
) -> None:
    before = Router(data.draw(st.permutations([*routes, *others])))
    if data.draw(st.booleans(), label="the same matches, led elsewhere"):
        copies = [attrs.evolve(route, id=f"new {route.id}") for route in before.routes]
        routes = [attrs.evolve(route, match=attrs.evolve(route.match)) for route in copies]
    before.shadowed()

    router, fresh = Router(routes, before), Router(routes)

    assert router.shadowed() == fresh.shadowed()
    assert [router.match(facts) for facts in clients] == [fresh.match(facts) for facts in clients]


def is_wide(route: Route) -> bool:
    return router_module._is_wide(router_module._sides(route.match))


@given(route_lists, st.lists(facts_of_clients, min_size=1, max_size=20))
def test_a_shadowed_route_wins_nobody_and_a_copy_is_always_shadowed(
    routes: list[Route], clients: list[Facts]
) -> None:
    router = Router(routes)
    shadowed = router.shadowed()

    for facts in clients:
        assert router.match(facts) not in [hidden for hidden, _ in shadowed]
    assert all(int(hider.id) < int(hidden.id) for hidden, hider in shadowed)
    # Only of routes with very long lists not every one is found.
    copies = [attrs.evolve(route, id=f"copy of {route.id}") for route in routes if not is_wide(route)]
    assert {route.id for route, _ in Router([*routes, *copies]).shadowed()} >= {route.id for route in copies}


def test_a_match_costs_one_lookup_per_shape_however_many_routes_there_are() -> None:
    networks_on_one_port = [
        route(str(at), remote=f"10.{at // 256}.{at % 256}.0/24", ports="9100") for at in range(1000)
    ]
    on_other_ports = [route(str(at), ports=str(at)) for at in range(1000, 2000)]

    index = Router([*networks_on_one_port, *on_other_ports])._plain

    assert [len(shape.ranks) for shape in index._shapes] == [1000, 1000]
