"""How an upstream may choose, in our words and in APISIX's; written on its own or inline."""

from __future__ import annotations

import pytest

from streamgw.config.balancing import TYPES
from streamgw.config.schema import StreamRouteSpec, UpstreamSpec
from streamgw.config.strict import Fault, Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.model import NO_PACING, Pacing, Upstream

NODES = {"10.0.0.1:3306": 1}
PATTERN = (
    "^((uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id)"
    "|arg_[0-9a-zA-z_-]+)$"
)


def spec(**fields: object) -> UpstreamSpec:
    return structure({"nodes": NODES, **fields}, UpstreamSpec)


def upstream(**fields: object) -> Upstream:
    return spec(**fields).build("upstreams/1")


def fault(**fields: object) -> Fault:
    """The only one."""
    with pytest.raises(Wrong) as caught:
        spec(**fields)
    (found,) = caught.value.faults
    return found


def warnings(**fields: object) -> list[str]:
    return [f"{pointer_of(found.path)}: {found.message}" for found in spec(**fields).warnings()]


# ── Types ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_apisix_is_there(kind: str) -> None:
    assert upstream(type=kind, key="remote_addr").type == kind


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("random", "got 'random'"),
        ("least-conn", "got 'least-conn', did you mean 'least_conn'?"),
        (7, "got 7"),
    ],
)
def test_an_unknown_type_is_refused(written: object, said: str) -> None:
    assert fault(type=written).message == f"expected one of roundrobin, chash, least_conn, ewma, {said}"


# ── Keys of chash ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["remote_addr", "remote_port", "server_addr", "mqtt_client_id"])
def test_a_variable_becomes_a_template(key: str) -> None:
    assert upstream(type="chash", key=key).hash_key == f"${key}"
    assert upstream(type="chash", hash_on="vars", key=key).hash_key == f"${key}"


def test_a_combination_is_a_template() -> None:
    text = "$remote_addr:${ssl_server_name ?? none}"

    assert upstream(type="chash", hash_on="vars_combinations", key=text).hash_key == text


def test_other_types_have_no_key() -> None:
    assert upstream(key="$x", hash_on="header").hash_key == ""


def test_chash_needs_a_key() -> None:
    for hash_on in ("vars", "vars_combinations"):
        found = fault(type="chash", hash_on=hash_on)
        assert (found.path, found.message) == (("key",), "is required with type chash")
        assert found.error_msg == "missing key"


@pytest.mark.parametrize("key", ["server_port", "Remote_addr", "", "$remote_addr", "arg_"])
def test_what_apisix_refuses_is_refused_in_its_words(key: str) -> None:
    assert fault(type="chash", key=key).error_msg == (
        f'invalid configuration: failed to match pattern "{PATTERN}" with "{key}"'
    )


def test_a_slip_is_pointed_out() -> None:
    assert fault(type="chash", key="remote_adr").message == (
        "expected one of remote_addr, remote_port, server_addr, mqtt_client_id, got 'remote_adr',"
        " did you mean 'remote_addr'?"
    )


@pytest.mark.parametrize("key", ["uri", "host", "arg_user", "query_string"])
def test_what_only_http_has_is_refused(key: str) -> None:
    assert fault(type="chash", key=key).message == (
        f"'{key}' does not exist at layer 4; expected one of remote_addr, remote_port, server_addr, mqtt_client_id"
    )


@pytest.mark.parametrize("hash_on", ["header", "cookie", "consumer"])
def test_what_a_stream_has_not_cannot_be_hashed_on(hash_on: str) -> None:
    found = fault(type="chash", hash_on=hash_on, key="remote_addr")

    assert found.path == ("hash_on",)
    assert found.message == f"'{hash_on}' does not exist at layer 4; expected vars or vars_combinations"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("$remote_adr", "variable $remote_adr does not exist at layer 4, did you mean 'remote_addr'?"),
        ("$remote_addr$uri", "variable $uri does not exist at layer 4"),
        # Routes may share an upstream, and with it the choice.
        ("$route_id-$remote_addr", "variable $route_id is not known when a node is chosen"),
        ("$hostname", "variable $hostname is not known when a node is chosen"),
        ("$ssl_protocol", "variable $ssl_protocol is not known when a node is chosen"),
        ("$status", "variable $status is not known when a node is chosen"),
        ("remote_addr", "expected variables like $remote_addr$server_port, got 'remote_addr'"),
    ],
)
def test_a_combination_of_what_there_is_not_is_refused(key: str, said: str) -> None:
    assert fault(type="chash", hash_on="vars_combinations", key=key).message == said


def test_the_checks_are_the_same_for_an_upstream_inside_a_route() -> None:
    with pytest.raises(Wrong) as caught:
        structure({"upstream": {"nodes": NODES, "type": "chash"}}, StreamRouteSpec)

    (found,) = caught.value.faults
    assert (found.path, found.error_msg) == (("upstream", "key"), "missing key")


def test_a_ring_has_a_size_that_can_be_made() -> None:
    found = fault(type="chash", key="remote_addr", nodes={"10.0.0.1:1": 4000, "10.0.0.2:1": 97})

    assert found.path == ("nodes",)
    assert found.message.startswith("with chash the weights may add up to 4096, these to 4097")
    assert upstream(type="chash", key="remote_addr", nodes={"10.0.0.1:1": 4096}).hash_key


def test_a_key_without_chash_does_nothing() -> None:
    assert warnings(type="least_conn", hash_on="vars", key="uri") == [
        "hash_on: does nothing with type least_conn",
        "key: does nothing with type least_conn",
    ]
    assert warnings(type="chash", hash_on="vars", key="remote_addr") == []


# ── Pacing ───────────────────────────────────────────────────────────────────────────────────────


def test_nothing_holds_clients_back_by_default() -> None:
    assert upstream().pacing is NO_PACING
    assert upstream(streamgw={}).pacing == NO_PACING


def test_times_are_written_as_nginx_writes_them() -> None:
    written = {
        "slow_start": "30s",
        "max_conns": 200,
        "wait_for_node": "500ms",
        "queue_timeout": 5,
        "queue_size": 50,
    }

    assert upstream(streamgw=written).pacing == Pacing(30.0, 200, 0.5, 5.0, 50)
    assert warnings(streamgw=written) == []


@pytest.mark.parametrize(
    "written",
    [
        {"slow_start": -1},
        {"max_conns": "many"},
        {"queue_size": 0},
        {"queue_size": 100_001},
        {"wait_for_node": "soon"},
        {"wait": 1},
    ],
)
def test_what_is_out_of_bounds_is_refused(written: dict[str, object]) -> None:
    (name,) = written
    assert fault(streamgw=written).path == ("streamgw", name)


def test_a_queue_that_nobody_stands_in_is_pointed_out() -> None:
    assert warnings(streamgw={"queue_timeout": 5, "queue_size": 5}) == [
        "streamgw.queue_timeout: does nothing without 'max_conns'",
        "streamgw.queue_size: does nothing without 'max_conns' or 'wait_for_node'",
    ]
    assert warnings(streamgw={"queue_size": 5, "wait_for_node": 1}) == []
    assert warnings(streamgw={"queue_size": 5, "queue_timeout": 1, "max_conns": 1}) == []


def test_a_ring_does_not_start_slowly() -> None:
    assert warnings(type="chash", key="remote_addr", streamgw={"slow_start": 5}) == [
        "streamgw.slow_start: does nothing with type chash: a key stays where it is"
    ]
    assert warnings(type="chash", key="remote_addr", streamgw={"max_conns": 5}) == []
