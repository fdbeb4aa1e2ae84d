from __future__ import annotations

import pytest

from streamgw.core import errors
from streamgw.core.errors import ConfigError, Fault, Problem, Reason, SessionError, StreamgwError


def session_errors() -> list[type[SessionError]]:
    return [error for error in SessionError.__subclasses__() if error.__module__ == errors.__name__]


def test_every_session_error_says_why_and_whose_fault_it_is() -> None:
    for error in session_errors():
        assert isinstance(error.reason, Reason), error
        assert isinstance(error.fault, Fault), error


def test_only_what_went_well_or_an_operator_asked_for_is_nobodys_fault() -> None:
    nobodys = {error.reason for error in session_errors() if error.fault is Fault.NONE}

    assert nobodys <= {Reason.CLOSED, Reason.DRAIN, Reason.KILLED}


def test_only_a_failed_connect_may_be_tried_again_elsewhere() -> None:
    assert [error for error in session_errors() if error.retryable] == [errors.ConnectFailed]


def test_every_error_of_ours_has_one_base() -> None:
    raised_on_purpose = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]

    assert all(issubclass(error, StreamgwError) for error in raised_on_purpose)


def test_what_a_plugin_says_keeps_what_it_said() -> None:
    refused, told = errors.Rejected("too many"), errors.Answered(b"bye")

    assert (str(refused), refused.status, refused.reset) == ("too many", 403, False)
    assert (errors.Rejected("no", status=503, reset=True).status, told.words) == (503, b"bye")


def test_reasons_and_faults_print_as_the_words_in_the_log() -> None:
    assert f"{Reason.CONNECT_FAILED} {Fault.UPSTREAM}" == "connect_failed upstream"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            Problem("routes.d/a.yaml", 8, 17, "upstreams[0].id", "no"),
            "routes.d/a.yaml:8:17 upstreams[0].id: no",
        ),
        (Problem("routes.d/a.yaml", 8, 0, "", "no"), "routes.d/a.yaml:8: no"),
        (
            Problem("conf/config.yaml", 0, 0, "", "there is no such file"),
            "conf/config.yaml: there is no such file",
        ),
    ],
)
def test_a_problem_prints_as_place_and_message(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_problems_sort_by_their_place() -> None:
    first, second, third = (
        Problem("a.yaml", 2, 1, "", "z"),
        Problem("a.yaml", 10, 1, "", "a"),
        Problem("b.yaml", 1, 1, "", "a"),
    )

    assert sorted([third, second, first]) == [first, second, third]


def test_a_config_error_carries_every_problem_and_prints_one_per_line() -> None:
    problems = (Problem("a.yaml", 1, 0, "", "one"), Problem("b.yaml", 2, 0, "", "two"))

    error = ConfigError(problems)

    assert error.problems == problems
    assert str(error) == "a.yaml:1: one\nb.yaml:2: two"


def test_a_config_error_without_a_problem_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="at least one problem"):
        ConfigError(())


def test_programs_are_shown_a_problem_as_people_are() -> None:
    problem = Problem(
        "routes.d/a.yaml", 3, 5, "stream_routes[0].server_port", "no", error_msg="for the Admin API"
    )

    assert problem.as_data() == {
        "file": "routes.d/a.yaml",
        "line": 3,
        "column": 5,
        "pointer": "stream_routes[0].server_port",
        "message": "no",
    }
