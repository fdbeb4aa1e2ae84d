from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.sni import SNIIndex, matches_name


def index(*patterns: str, one_label: bool = False) -> SNIIndex[str]:
    return SNIIndex(((pattern, pattern) for pattern in patterns), one_label=one_label)


# The one table in which the two rules stand side by side: what a pattern covers on a route, and on a certificate.
@pytest.mark.parametrize(
    ("pattern", "name", "on_route", "on_certificate"),
    [
        ("test.com", "test.com", True, True),
        ("test.com", "a.test.com", False, False),
        ("test.com", "mytest.com", False, False),
        ("*.test.com", "a.test.com", True, True),
        ("*.test.com", "a.b.test.com", True, False),
        ("*.test.com", "test.com", False, False),
        ("*.test.com", "a.test.com.evil", False, False),
        ("*.b.test.com", "a.b.test.com", True, True),
        ("*test.com", "test.com", True, True),
        ("*test.com", "mytest.com", True, True),
        ("*test.com", "a.test.com", True, False),
        ("*test.com", "com", False, False),
        ("*", "anything", True, True),
        ("*", "a.b.test.com", True, True),
    ],
)
def test_a_pattern_matches_as_in_apisix(
    pattern: str, name: str, *, on_route: bool, on_certificate: bool
) -> None:
    assert matches_name(pattern, name) is on_route
    assert list(index(pattern).candidates(name)) == ([pattern] if on_route else [])
    assert matches_name(pattern, name, one_label=True) is on_certificate
    assert list(index(pattern, one_label=True).candidates(name)) == ([pattern] if on_certificate else [])


KNOWN = ("*", "*.com", "*.test.com", "*test.com", "a.test.com", "b.test.com", "*.b.test.com")


@pytest.mark.parametrize(
    ("name", "on_route", "on_certificate"),
    [
        (
            "a.test.com",
            ["a.test.com", "*.test.com", "*test.com", "*.com", "*"],
            ["a.test.com", "*.test.com", "*"],
        ),
        ("c.test.com", ["*.test.com", "*test.com", "*.com", "*"], ["*.test.com", "*"]),
        ("test.com", ["*test.com", "*.com", "*"], ["*test.com", "*.com", "*"]),
        ("a.b.test.com", ["*.b.test.com", "*.test.com", "*test.com", "*.com", "*"], ["*.b.test.com", "*"]),
        # The longest wildcard ends too deep: for a certificate the next one gets its turn.
        ("a.c.test.com", ["*.test.com", "*test.com", "*.com", "*"], ["*"]),
        ("else.where", ["*"], ["*"]),
    ],
)
def test_the_exact_name_comes_first_then_the_longest_wildcard(
    name: str, on_route: list[str], on_certificate: list[str]
) -> None:
    assert list(index(*KNOWN).candidates(name)) == on_route
    assert list(index(*KNOWN, one_label=True).candidates(name)) == on_certificate


def test_a_suffix_longer_than_the_name_does_not_match_it() -> None:
    assert list(index("*.long.test.com").candidates("com")) == []


@pytest.mark.parametrize("pattern", ["a.test.com", "*.test.com"])
def test_of_two_entries_for_one_name_the_first_counts(pattern: str) -> None:
    certificates = SNIIndex([(pattern, "first"), (pattern, "second")], one_label=True)

    assert list(certificates.candidates("a.test.com")) == ["first"]


labels = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
patterns = st.builds(str.__add__, st.sampled_from(["", "*", "*."]), labels) | st.just("*")


@given(st.lists(patterns, unique=True), labels, st.booleans())
def test_the_index_finds_what_asking_every_pattern_finds(
    known: list[str], name: str, one_label: bool
) -> None:
    asked = [pattern for pattern in known if matches_name(pattern, name, one_label=one_label)]
    asked.sort(key=lambda pattern: (pattern.startswith("*"), -len(pattern)))

    assert list(index(*known, one_label=one_label).candidates(name)) == asked


def test_every_value_is_listed_once_per_pattern() -> None:
    index = SNIIndex([("a.test", 1), ("*.test", 1), ("a.test", 2), ("*", 3)])

    assert list(index.values()) == [1, 1, 3]
