"""What loggers tell, and of which sessions."""

from __future__ import annotations

import attrs

from streamgw.config.strict import structure
from streamgw.core.batch import BatchPolicy, Collector, ToFile
from streamgw.core.hooks import Hooks, PluginServices
from streamgw.core.model import Outcome
from streamgw.plugins.file_logger import PLUGIN
from streamgw.plugins.records import (
    DEFAULT_FORMAT,
    MAX_MATCHES,
    MIN_RETRY_DELAY_S,
    HTTPLoggerOptions,
    LoggerOptions,
    LogMetadata,
    compile_record,
    telling,
)
from tests.support.plugins import CLIENT, Shelf, context
from tests.support.scenes import outcome

OUTCOME: Outcome = outcome(CLIENT, route_id="r1")
TO = ToFile(path="a.log")


def hooks(shelf: Shelf, **options: object) -> Hooks:
    made = structure(options, LoggerOptions)
    return telling(made, context(PLUGIN, PluginServices(shipping=shelf)), TO, timeout_s=7)


def close(made: Hooks, **how: object) -> None:
    assert made.on_close is not None
    made.on_close(CLIENT, attrs.evolve(OUTCOME, **how))


def test_the_format_of_the_route_goes_before_the_shared_one_and_that_before_the_default() -> None:
    own = LoggerOptions(log_format={"own": "$protocol"})
    shared = LogMetadata(log_format={"shared": "$protocol"})

    assert compile_record(own, shared, "gw")(OUTCOME) == {"own": "TCP", "route_id": "r1"}
    assert compile_record(LoggerOptions(), shared, "gw")(OUTCOME) == {"shared": "TCP", "route_id": "r1"}
    default = compile_record(LoggerOptions(), LogMetadata(), "gw")(OUTCOME)
    assert set(DEFAULT_FORMAT) - {"server_name", "upstream_addr"} == set(default) - {"route_id"}


def test_an_entry_without_a_value_is_left_out_and_text_stays() -> None:
    options = LoggerOptions(
        log_format={
            "sni": "$ssl_server_name",
            "who": "${remote_addr} at $hostname",
            "empty": "",
            "up": "${upstream}",
        }
    )

    assert compile_record(options, LogMetadata(), "gw")(OUTCOME) == {
        "who": "192.0.2.9 at gw",
        "empty": "",
        "route_id": "r1",
    }


def test_a_service_is_told_if_there_is_one() -> None:
    of_service = attrs.evolve(OUTCOME, service_id="s1")

    assert compile_record(LoggerOptions(log_format={"a": "b"}), LogMetadata(), "")(of_service) == {
        "a": "b",
        "route_id": "r1",
        "service_id": "s1",
    }


def test_a_variable_of_http_is_warned_of_and_left_out() -> None:
    options = LoggerOptions(log_format={"uri": "$uri", "ip": "$remote_addr"})

    (fault,) = options.warnings()
    (shared,) = LogMetadata(log_format={"uri": "$uri", "ip": "$remote_addr"}).warnings()

    assert fault.path == ("log_format", "uri")
    assert fault == shared
    assert fault.message == "unknown variable $uri: records are without it"
    assert compile_record(options, LogMetadata(), "")(OUTCOME) == {"ip": "192.0.2.9", "route_id": "r1"}


def test_a_record_is_shipped_as_the_options_and_the_metadata_say() -> None:
    shelf = Shelf()

    close(hooks(shelf, log_format={"ip": "$remote_addr"}, batch_max_size=3, drop_limit=99))

    policy = BatchPolicy(max_records=3, pending_limit_bytes=99)
    assert shelf.shipped == [
        (Collector(to=TO, timeout_s=7, policy=policy), b'{"ip": "192.0.2.9", "route_id": "r1"}')
    ]


def test_a_batch_is_never_tried_again_at_once() -> None:
    assert LoggerOptions(retry_delay=0).policy(LogMetadata()).retry_delay_s == MIN_RETRY_DELAY_S
    assert LoggerOptions(retry_delay=2).policy(LogMetadata()).retry_delay_s == 2


def test_only_what_matches_is_told_by_how_it_went() -> None:
    shelf = Shelf()
    made = hooks(
        shelf,
        log_format={"reason": "$reason"},
        match=[[["reason", "~=", "closed"]], [["bytes_sent", ">", 1000], ["hostname", "==", "gw"]]],
    )

    close(made, reason="closed", bytes_down=1000)
    close(made, reason="idle_timeout", bytes_down=0)
    close(made, reason="closed", bytes_down=1001)

    assert [record for _, record in shelf.shipped] == [
        b'{"reason": "idle_timeout", "route_id": "r1"}',
        b'{"reason": "closed", "route_id": "r1"}',
    ]


def test_conditions_on_what_no_session_has_are_warned_of() -> None:
    options = structure({"match": [[["reason", "==", "x"]], [["uri", "==", "/"]]]}, LoggerOptions)

    (fault,) = options.warnings()

    assert (fault.path, fault.message) == (("match", 1), "unknown variable $uri: it never has a value")


def test_conditions_are_bounded() -> None:
    assert [fault.message for fault in LoggerOptions(match=()).check()] == []
    many = structure({"match": [[]] * MAX_MATCHES}, LoggerOptions)

    (fault,) = attrs.evolve(many, match=(*many.match, many.match[0])).check()

    assert fault.message == "expected at most 20 entries"
    assert fault.apisix == 'property "match" validation failed: expect array to have at most 20 items'


def test_what_is_said_of_bodies_has_no_effect() -> None:
    bodies = {
        "include_req_body": True,
        "include_req_body_expr": [["a", "==", 1]],
        "include_resp_body": False,
        "include_resp_body_expr": [["a", "==", 1]],
        "max_req_body_bytes": 1,
        "max_resp_body_bytes": 1,
    }
    options = structure({**bodies, "log_format": {"uri": "$uri"}}, HTTPLoggerOptions)

    found = list(options.warnings())

    assert [fault.path[0] for fault in found] == [*sorted(bodies), "log_format"]
    assert {fault.message for fault in found[:-1]} == {"does nothing at layer 4"}
