from __future__ import annotations

import pytest

from streamgw.config.datagrams import DatagramSpec
from streamgw.config.strict import Wrong, structure
from streamgw.config.yaml_reader import pointer_of
from streamgw.core.model import DatagramRules


def warnings(data: object) -> list[str]:
    return [
        f"{pointer_of(fault.path)}: {fault.message}" for fault in structure(data, DatagramSpec).warnings()
    ]


def test_what_is_not_said_is_not_asked() -> None:
    assert structure({}, DatagramSpec).build() == DatagramRules()


def test_everything_said_arrives() -> None:
    spec = structure({"idle_timeout": 5, "responses": 1, "requests": 2, "amplification": 3.5}, DatagramSpec)

    assert spec.build() == DatagramRules(idle_s=5.0, responses=1, requests=2, amplification=3.5)


def test_no_answers_is_something_else_than_any_number_of_answers() -> None:
    assert structure({"responses": 0}, DatagramSpec).build().responses == 0


def test_what_is_no_rule_is_named() -> None:
    with pytest.raises(Wrong) as caught:
        structure(
            {"idle_timeout": 0, "responses": -1, "requests": 1.5, "amplification": "3", "response": 1},
            DatagramSpec,
        )

    assert sorted(f"{pointer_of(fault.path)}: {fault.message}" for fault in caught.value.faults) == [
        "amplification: expected a number ≥ 0, got '3'",
        "idle_timeout: expected a number > 0, got 0",
        "requests: expected an integer ≥ 0, got 1.5",
        "response: unknown field 'response', did you mean 'responses'?",
        "responses: expected an integer ≥ 0, got -1",
    ]


def test_what_a_session_of_one_datagram_cannot_have_is_named() -> None:
    nothing = "does nothing with 'responses: 0': a session is one datagram, and nothing comes back"

    assert warnings({"responses": 0, "requests": 1, "amplification": 3}) == [
        f"requests: {nothing}",
        f"amplification: {nothing}",
    ]
    assert warnings({"responses": 0, "requests": 1}) == [f"requests: {nothing}"]
    assert warnings({"responses": 1, "requests": 1, "amplification": 3}) == []


def test_answers_shorter_than_their_questions_are_worth_a_word() -> None:
    assert warnings({"amplification": 0.5}) == [
        "amplification: an answer as long as its question is dropped until the client sends again; "
        "expected 0 or ≥ 1, got 0.5"
    ]
