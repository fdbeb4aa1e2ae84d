from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.sni import SNIIndex, matches_name


def index(*patterns: str) -> SNIIndex[str]:
    return SNIIndex((pattern, pattern) for pattern in patterns)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("test.com", "test.com", True),
        ("test.com", "a.test.com", False),
        ("*.test.com", "a.test.com", True),
        ("*.test.com", "a.b.test.com", True),
        ("*.test.com", "test.com", False),
        ("*test.com", "test.com", True),
        ("*test.com", "a.test.com", True),
        ("*test.com", "mytest.com", True),
        ("*test.com", "com", False),
        ("*", "anything", True),
    ],
)
def test_a_pattern_matches_as_in_apisix(pattern: str, name: str, *, matches: bool) -> None:
    assert matches_name(pattern, name) is matches
    assert list(index(pattern).candidates(name)) == ([pattern] if matches else [])


def test_the_exact_name_comes_first_then_the_longest_wildcard() -> None:
    names = index("*", "*.com", "*.test.com", "*test.com", "a.test.com", "b.test.com", "*.b.test.com")

    assert list(names.candidates("a.test.com")) == ["a.test.com", "*.test.com", "*test.com", "*.com", "*"]


def test_a_suffix_longer_than_the_name_does_not_match_it() -> None:
    assert list(index("*.long.test.com").candidates("com")) == []


labels = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
patterns = st.builds(str.__add__, st.sampled_from(["", "*", "*."]), labels) | st.just("*")


@given(st.lists(patterns, unique=True), labels)
def test_the_index_finds_what_asking_every_pattern_finds(known: list[str], name: str) -> None:
    asked = [pattern for pattern in known if matches_name(pattern, name)]
    asked.sort(key=lambda pattern: (pattern.startswith("*"), -len(pattern)))

    assert list(index(*known).candidates(name)) == asked
