from __future__ import annotations

import json
import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.access_log import STATUS_BY_REASON, Escape, compile_format, format_json
from streamgw.core.errors import Fault, Reason
from streamgw.core.model import Address, Attempt, ClientCertificate, Facts, Outcome

CLIENT, SERVER, NODE = Address("10.1.2.3", 54321), Address("127.0.0.1", 9100), Address("10.0.0.5", 3306)
OTHER_NODE = Address("::1", 3307)
BALANCER = Address("192.0.2.9", 4444)

DONE = Outcome(
    session_id="5f3a-17",
    facts=Facts("tcp", "tcp *:9100", CLIENT, SERVER),
    peer=CLIENT,
    reason=Reason.CLOSED,
    fault=Fault.NONE,
    phase="relay",
    started_at=1_763_700_000.123,
    duration_s=1.5,
    connect_s=0.000_42,
    bytes_up=123,
    bytes_down=456,
    route_id="mysql",
    route_name="orders database",
    service_id="7",
    service_name="orders",
    upstream="upstreams/1",
    node=NODE,
    revision="3f2a",
)
REFUSED = attrs.evolve(
    DONE,
    reason=Reason.CONNECT_FAILED,
    fault=Fault.UPSTREAM,
    phase="connect",
    connect_s=None,
    bytes_up=0,
    bytes_down=0,
    attempts=(Attempt(OTHER_NODE, 0.001, "connection refused"), Attempt(NODE, 1.0, "timed out")),
    detail='no answer from "10.0.0.5"',
)
RETRIED = attrs.evolve(DONE, attempts=REFUSED.attempts[:1])
DATAGRAMS = attrs.evolve(
    DONE,
    facts=Facts("udp", "udp *:9200", CLIENT, SERVER),
    datagrams_up=3,
    datagrams_down=2,
    datagrams_dropped=1,
)
NO_ROUTE = attrs.evolve(
    DONE,
    reason=Reason.NO_ROUTE,
    fault=Fault.CLIENT,
    phase="match",
    connect_s=None,
    route_id="",
    route_name="",
    service_id="",
    service_name="",
    upstream="",
    node=None,
    revision="",
)
TERMINATED = attrs.evolve(
    DONE,
    facts=attrs.evolve(DONE.facts, server_name="db.example"),
    tls_version="TLSv1.3",
    tls_cipher="TLS_AES_256_GCM_SHA384",
)
ALICE = ClientCertificate(
    "CN=alice,O=Example", ("DNS:alice.example", "URI:spiffe://example/a,b"), "ab" * 32, "1f"
)
PROVEN = attrs.evolve(TERMINATED, facts=attrs.evolve(TERMINATED.facts, client_certificate=ALICE))
HANDED_ON = attrs.evolve(TERMINATED, tls_version="passthrough", tls_cipher="")


def test_a_json_line_has_its_keys_in_a_fixed_order() -> None:
    line = format_json(DONE)

    assert json.loads(line) == {
        "time": "2025-11-21T04:40:01.623Z",
        "session": "5f3a-17",
        "listener": "tcp *:9100",
        "client": "10.1.2.3:54321",
        "server": "127.0.0.1:9100",
        "route": "mysql",
        "service": "7",
        "upstream": "upstreams/1",
        "node": "10.0.0.5:3306",
        "bytes_up": 123,
        "bytes_down": 456,
        "duration_s": 1.5,
        "connect_ms": 0.42,
        "phase": "relay",
        "reason": "closed",
        "fault": "none",
        "side": "",
        "detail": "",
        "revision": "3f2a",
    }
    keys = list(json.loads(line))
    assert keys[:6] == ["time", "session", "listener", "client", "server", "route"]
    assert keys[-7:] == ["connect_ms", "phase", "reason", "fault", "side", "detail", "revision"]
    assert compile_format("json")(DONE) == line


def test_the_peer_is_named_when_a_proxy_header_spoke_for_the_client() -> None:
    told = json.loads(format_json(attrs.evolve(DONE, peer=BALANCER)))

    assert told["client"] == "10.1.2.3:54321"
    assert told["peer"] == "192.0.2.9:4444"


def test_a_client_that_spoke_tls_is_told_with_its_name_after_the_server() -> None:
    told = json.loads(format_json(TERMINATED))

    assert (told["tls"], told["cipher"], told["sni"]) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", "db.example")
    assert list(told)[4:9] == ["server", "tls", "cipher", "sni", "route"]


def test_who_a_client_has_proven_to_be_is_told() -> None:
    told = json.loads(format_json(PROVEN))

    assert told["client_subject"] == "CN=alice,O=Example"
    assert told["client_fingerprint"] == "ab" * 32
    assert told["client_sans"] == ["DNS:alice.example", "URI:spiffe://example/a,b"]
    assert list(told)[7:11] == ["sni", "client_subject", "client_fingerprint", "client_sans"]


def test_what_a_tls_session_does_not_have_is_empty() -> None:
    handed_on = json.loads(format_json(HANDED_ON))
    refused = attrs.evolve(
        TERMINATED, reason=Reason.TLS_FAILED, phase="handshake", tls_version="", tls_cipher=""
    )
    nameless = attrs.evolve(TERMINATED, facts=DONE.facts)

    assert (handed_on["tls"], handed_on["cipher"], handed_on["sni"]) == ("passthrough", "", "db.example")
    assert json.loads(format_json(refused))["sni"] == "db.example"
    assert json.loads(format_json(refused))["tls"] == ""
    assert json.loads(format_json(nameless))["sni"] == ""


def test_every_failed_attempt_is_told_with_its_error() -> None:
    told = json.loads(format_json(REFUSED))

    assert told["attempts"] == [
        {"node": "[::1]:3307", "ms": 1.0, "error": "connection refused"},
        {"node": "10.0.0.5:3306", "ms": 1000.0, "error": "timed out"},
    ]
    assert told["detail"] == 'no answer from "10.0.0.5"'
    assert told["connect_ms"] is None


def test_attempts_that_all_succeeded_are_not_worth_a_key() -> None:
    connected = attrs.evolve(DONE, attempts=(Attempt(NODE, 0.000_42, ""),))

    assert "attempts" not in json.loads(format_json(connected))


def test_a_session_that_found_no_route_has_no_node() -> None:
    told = json.loads(format_json(NO_ROUTE))

    assert told["node"] is None
    assert (told["route"], told["upstream"], told["service"]) == ("", "", "")


@given(st.text(), st.text(), st.floats(0, 4e9), st.floats(0, 1e7))
def test_whatever_the_texts_hold_a_json_line_is_one_line_of_json(
    detail: str, error: str, started_at: float, duration_s: float
) -> None:
    outcome = attrs.evolve(
        DONE,
        facts=attrs.evolve(DONE.facts, listener=f"tcp unix:/run/{detail}"),
        attempts=(Attempt(NODE, 0.1, error or "?"),),
        detail=detail,
        started_at=started_at,
        duration_s=duration_s,
    )

    line = format_json(outcome)

    assert "\n" not in line
    assert json.loads(line)["detail"] == detail
    assert json.loads(line)["attempts"][0]["error"] == (error or "?")
    assert json.loads(line)["duration_s"] == pytest.approx(duration_s, abs=1e-6)


def test_apisix_has_its_default_format() -> None:
    line = compile_format("apisix")(DONE)

    # The time is local, as nginx writes it: its digits depend on where this runs.
    assert re.fullmatch(r"10\.1\.2\.3 \[2[01]/Nov/2025:\d\d:\d\d:01 [+-]\d{4}\] TCP 200 456 123 1\.500", line)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("remote_addr", "10.1.2.3"),
        ("remote_port", "54321"),
        ("server_addr", "127.0.0.1"),
        ("server_port", "9100"),
        ("protocol", "TCP"),
        ("connection", "5f3a-17"),
        ("bytes_sent", "456"),
        ("bytes_received", "123"),
        ("session_time", "1.500"),
        ("status", "200"),
        ("msec", "1763700001.623"),
        ("hostname", "gw-1"),
        ("upstream_addr", "10.0.0.5:3306"),
        ("upstream_bytes_sent", "123"),
        ("upstream_bytes_received", "456"),
        ("upstream_connect_time", "0.000"),
        ("upstream_session_time", "1.500"),
        ("realip_remote_addr", "10.1.2.3"),
        ("realip_remote_port", "54321"),
        ("proxy_protocol_addr", "-"),
        ("proxy_protocol_port", "-"),
        ("ssl_server_name", "-"),
        ("ssl_protocol", "-"),
        ("ssl_cipher", "-"),
        ("mqtt_client_id", "-"),
        ("route_id", "mysql"),
        ("route_name", "orders database"),
        ("service_id", "7"),
        ("service_name", "orders"),
        ("balancer_ip", "10.0.0.5"),
        ("balancer_port", "3306"),
        ("listener", "tcp *:9100"),
        ("upstream", "upstreams/1"),
        ("phase", "relay"),
        ("reason", "closed"),
        ("fault", "none"),
        ("side", "-"),
        ("detail", "-"),
        ("revision", "3f2a"),
    ],
)
def test_a_format_has_the_variables_of_nginx_apisix_and_ours(variable: str, value: str) -> None:
    assert compile_format(f"${variable}", hostname="gw-1")(DONE) == value
    assert compile_format(f"<${{{variable}}}>", hostname="gw-1")(DONE) == f"<{value}>"


def test_an_mqtt_clients_name_is_told() -> None:
    sensor = attrs.evolve(DONE, facts=attrs.evolve(DONE.facts, mqtt_client_id="sensor-7"))

    assert compile_format("$mqtt_client_id")(sensor) == "sensor-7"


TLS_FORMAT = "$ssl_server_name|$ssl_protocol|$ssl_cipher|$tls|$ssl_client_s_dn|$ssl_client_serial|$client_sans|$client_fingerprint"


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (DONE, "-|-|-|-|-|-|-|-"),
        (TERMINATED, "db.example|TLSv1.3|TLS_AES_256_GCM_SHA384|TLSv1.3|-|-|-|-"),
        (
            PROVEN,
            "db.example|TLSv1.3|TLS_AES_256_GCM_SHA384|TLSv1.3|CN=alice,O=Example|1F|"
            f"DNS:alice.example,URI:spiffe://example/a,b|{'ab' * 32}",
        ),
        (HANDED_ON, "db.example|-|-|passthrough|-|-|-|-"),
    ],
)
def test_tls_has_nginxs_variables_and_ours(outcome: Outcome, line: str) -> None:
    assert compile_format(TLS_FORMAT)(outcome) == line


def test_a_certificate_without_alternative_names_has_none() -> None:
    nobody = attrs.evolve(
        PROVEN, facts=attrs.evolve(PROVEN.facts, client_certificate=attrs.evolve(ALICE, sans=()))
    )

    assert compile_format("$client_sans")(nobody) == "-"


def test_times_are_local_and_carry_their_offset() -> None:
    line = compile_format("$time_iso8601")(DONE)

    assert re.fullmatch(r"2025-11-2[01]T\d\d:\d\d:01[+-]\d\d:\d\d", line)


@pytest.mark.parametrize("escape", ["json", "none"])
def test_what_a_session_does_not_have_is_a_hyphen_or_with_other_escapes_nothing(escape: Escape) -> None:
    names = "route_id route_name service_id service_name upstream revision balancer_ip balancer_port upstream_addr hostname"
    log_format = f"<{''.join(f'${name}' for name in names.split())}>"

    assert compile_format(log_format)(NO_ROUTE) == f"<{'-' * 10}>"
    assert compile_format(log_format, escape)(NO_ROUTE) == "<>"


def test_the_clients_address_by_proxy_header_stands_beside_the_peers() -> None:
    line = compile_format(
        "$remote_addr $realip_remote_addr $realip_remote_port $proxy_protocol_addr $proxy_protocol_port"
    )

    assert line(attrs.evolve(DONE, peer=BALANCER)) == "10.1.2.3 192.0.2.9 4444 10.1.2.3 54321"


UPSTREAM_FORMAT = "$upstream_addr|$upstream_connect_time|$upstream_session_time|$upstream_bytes_sent|$upstream_bytes_received"


def test_tried_nodes_are_listed_with_commas_as_nginx_does() -> None:
    line = compile_format(UPSTREAM_FORMAT)

    assert line(RETRIED) == "[::1]:3307, 10.0.0.5:3306|-, 0.000|0.001, 1.499|0, 123|0, 456"
    assert line(REFUSED) == "[::1]:3307, 10.0.0.5:3306|-, -|0.001, 1.000|0, 0|0, 0"


def test_a_node_whose_connect_was_cut_short_is_listed_too() -> None:
    line = compile_format(UPSTREAM_FORMAT)
    cut_short = attrs.evolve(
        DONE, reason=Reason.DRAIN, phase="connect", connect_s=None, bytes_up=0, bytes_down=0
    )

    assert line(cut_short) == "10.0.0.5:3306|-|1.500|0|0"
    assert line(attrs.evolve(cut_short, attempts=RETRIED.attempts)).startswith(
        "[::1]:3307, 10.0.0.5:3306|-, -|"
    )


def test_a_single_node_dialled_again_and_connected_is_listed_twice() -> None:
    again = attrs.evolve(DONE, attempts=(Attempt(NODE, 0.25, "connection refused"),))

    assert (
        compile_format(UPSTREAM_FORMAT)(again)
        == "10.0.0.5:3306, 10.0.0.5:3306|-, 0.000|0.250, 1.250|0, 123|0, 456"
    )


def test_every_reason_has_one_of_nginxs_codes() -> None:
    assert set(STATUS_BY_REASON) == set(Reason)
    assert compile_format("$status")(REFUSED) == "502"
    assert compile_format("$status")(attrs.evolve(DONE, reason="bad_preface")) == "400"


def test_a_failed_handshake_is_500_with_the_client_and_502_with_a_node() -> None:
    failed = attrs.evolve(DONE, reason=Reason.TLS_FAILED, fault=Fault.CLIENT)

    assert compile_format("$status")(failed) == "500"
    assert compile_format("$status")(attrs.evolve(failed, fault=Fault.UPSTREAM)) == "502"


def test_a_variable_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown variable \$request_uri"):
        compile_format("$remote_addr ${request_uri}")


def test_text_around_variables_stays_and_a_lone_dollar_is_text() -> None:
    assert compile_format('a "$status", 5$ \\')(DONE) == 'a "200", 5$ \\'
    assert compile_format("")(DONE) == ""


TRICKY = attrs.evolve(DONE, detail='say "ü\\"\r\n\x01~')


@pytest.mark.parametrize(
    ("escape", "written"),
    [
        ("default", r"say \x22\xC3\xBC\x5C\x22\x0D\x0A\x01~"),
        ("json", r"say \"\u00fc\\\"\r\n\u0001~"),
        ("none", 'say "ü\\" \x01~'),
    ],
)
def test_values_are_escaped_as_nginx_does(escape: Escape, written: str) -> None:
    assert compile_format("$detail", escape)(TRICKY) == written


def test_half_a_surrogate_pair_which_utf_8_has_not_is_written_all_the_same() -> None:
    path = attrs.evolve(DONE, facts=attrs.evolve(DONE.facts, listener="tcp unix:/run/\udcff"))

    assert compile_format("$listener")(path) == r"tcp unix:/run/\xED\xB3\xBF"
    assert format_json(path).isascii()


@given(st.text())
def test_escaped_values_never_leave_their_line_and_json_reads_them_back(text: str) -> None:
    outcome = attrs.evolve(DONE, detail=text)

    default = compile_format('"$detail"')(outcome)
    assert default.isascii()
    assert default.isprintable()
    assert default.count('"') == 2
    assert json.loads(compile_format('"$detail"', "json")(outcome)) == text
    assert len(compile_format("x$detail", "none")(outcome).splitlines()) == 1


def test_a_udp_session_counts_its_datagrams() -> None:
    line = json.loads(format_json(DATAGRAMS))
    keys = list(line)

    assert [line[key] for key in ("datagrams_up", "datagrams_down", "datagrams_dropped")] == [3, 2, 1]
    assert keys[keys.index("bytes_down") :][:5] == [
        "bytes_down",
        "datagrams_up",
        "datagrams_down",
        "datagrams_dropped",
        "duration_s",
    ]
    assert not any(key.startswith("datagrams") for key in json.loads(format_json(DONE)))


def test_datagrams_in_a_format_of_ones_own() -> None:
    line = compile_format("$protocol $datagrams_up $datagrams_down $datagrams_dropped")

    assert line(DATAGRAMS) == "UDP 3 2 1"
    assert line(DONE) == "TCP - - -"
