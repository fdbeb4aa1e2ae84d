from __future__ import annotations

import pytest

from streamgw.core import errors
from streamgw.core.errors import ConfigError, Fault, Problem, Reason, SessionError


def every_session_error() -> list[type[SessionError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, SessionError) and kind is not SessionError
    ]


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (
            Problem("routes.d/a.yaml", 8, 17, "nodes[1].port", "expected"),
            "routes.d/a.yaml:8:17 nodes[1].port: expected",
        ),
        (Problem("routes.d/a.yaml", 8, 0, "nodes", "expected"), "routes.d/a.yaml:8 nodes: expected"),
        (Problem("routes.d/a.yaml", 8, 17, "", "not YAML"), "routes.d/a.yaml:8:17: not YAML"),
        (Problem("routes.d", 0, 0, "", "no such directory"), "routes.d: no such directory"),
    ],
)
def test_a_problem_prints_as_a_place_and_a_sentence(problem: Problem, line: str) -> None:
    assert str(problem) == line


def test_problems_sort_by_their_place() -> None:
    first, second = Problem("a.yaml", 2, 1, "x", "m"), Problem("a.yaml", 10, 1, "x", "m")

    assert sorted([second, first]) == [first, second]


def test_a_rejected_configuration_prints_every_problem() -> None:
    problems = (Problem("a.yaml", 1, 1, "", "one"), Problem("b.yaml", 2, 2, "", "two"))

    error = ConfigError(problems)

    assert str(error) == "a.yaml:1:1: one\nb.yaml:2:2: two"
    assert error.problems == problems


def test_a_rejection_without_a_problem_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="at least one problem"):
        ConfigError(())


@pytest.mark.parametrize("kind", every_session_error(), ids=lambda kind: kind.__name__)
def test_every_session_error_says_why_and_whose_fault(kind: type[SessionError]) -> None:
    assert isinstance(kind.reason, Reason)
    assert isinstance(kind.fault, Fault)


def test_only_a_failed_connect_lets_the_next_node_help() -> None:
    assert [kind for kind in every_session_error() if kind.retryable] == [errors.ConnectFailed]
