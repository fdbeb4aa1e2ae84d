"""What loggers tell of a session."""

from __future__ import annotations

import attrs

from streamgw.core.model import Outcome
from streamgw.plugins.records import (
    DEFAULT_FORMAT,
    LoggerOptions,
    LogMetadata,
    compile_record,
    unknown_in,
)
from tests.support.plugins import CLIENT
from tests.support.scenes import outcome

OUTCOME: Outcome = outcome(CLIENT, route_id="r1")


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
    log_format = {"uri": "$uri", "ip": "$remote_addr"}

    (fault,) = unknown_in(log_format)

    assert fault.path == ("log_format", "uri")
    assert fault.message == "unknown variable $uri: records are without it"
    record = compile_record(LoggerOptions(log_format=log_format), LogMetadata(), "")(OUTCOME)
    assert record == {"ip": "192.0.2.9", "route_id": "r1"}
