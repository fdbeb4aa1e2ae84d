"""Who gives way, who begins too many, who was refused where."""

from __future__ import annotations

import math

import attrs
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.model import Address
from streamgw.core.udp_room import (
    EVICTABLE_AFTER_S,
    MAX_REFUSALS,
    PAUSE_S,
    REFUSED_FOR_S,
    Client,
    Refusals,
    Scope,
)

NODE, OTHER = Address("10.0.0.1", 53), Address("10.0.0.2", 53)


@attrs.define(eq=False)
class Guest:
    active_at: float = 0.0
    assured: bool = False


def scope_of(*guests: Guest) -> Scope[Guest]:
    scope = Scope[Guest]()
    for guest in guests:
        assured, guest.assured = guest.assured, False
        scope.add(guest)
        if assured:
            scope.assure(guest)
            guest.assured = True
    return scope


def test_nobody_gives_way_where_nobody_is() -> None:
    assert scope_of().victim(100.0) is None


def test_the_fresh_one_that_has_been_silent_longest_gives_way() -> None:
    early, late = Guest(1.0), Guest(2.0)

    assert scope_of(late, early).victim(2.0) is early


def test_whoever_was_active_meanwhile_is_passed_over() -> None:
    first, second = Guest(1.0), Guest(2.0)
    scope = scope_of(first, second)
    assert scope.victim(2.0) is first

    first.active_at = 3.0

    assert scope.victim(3.0) is second


def test_fresh_ones_go_before_assured_ones_that_are_older() -> None:
    served, flood = Guest(0.0, assured=True), Guest(100.0)

    assert scope_of(served, flood).victim(100.0) is flood


def test_an_assured_one_goes_only_after_it_was_idle_for_long() -> None:
    served = Guest(0.0, assured=True)
    scope = scope_of(served)

    assert scope.victim(EVICTABLE_AFTER_S - 0.01) is None
    assert scope.victim(EVICTABLE_AFTER_S) is served


def test_an_ended_session_is_not_kept_for_the_sake_of_the_order() -> None:
    scope = scope_of(Guest(1.0), Guest(2.0))
    scope.victim(2.0)

    for guest in list(scope):
        scope.discard(guest)
    del guest
    last = Guest(3.0)
    scope.add(last)

    assert scope.victim(3.0) is last


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "touch", "end", "assure", "pick"]), st.integers(0, 300)),
        max_size=400,
    )
)
def test_it_is_always_the_longest_silent(steps: list[tuple[str, int]]) -> None:
    """Against the obvious: sort them all, each time."""
    scope = Scope[Guest]()
    guests: list[Guest] = []
    now = 0.0
    for step, number in steps:
        now += number / 100
        guest = guests[number % len(guests)] if guests else None
        if step == "add" or guest is None:
            guests.append(Guest(now))
            scope.add(guests[-1])
        elif step == "touch":
            guest.active_at = now
        elif step == "end":
            guests.remove(guest)
            scope.discard(guest)
        elif step == "assure" and not guest.assured:
            scope.assure(guest)
            guest.assured = True
        found = scope.victim(now)

        fresh = [each for each in guests if not each.assured]
        idle = [each for each in guests if each.assured and now - each.active_at >= EVICTABLE_AFTER_S]
        candidates = fresh or idle
        assert (found is None) is (not candidates)
        if found is not None:
            assert found in candidates
            assert found.active_at == min(each.active_at for each in candidates)
    assert len(scope) == len(guests) == len(list(scope))


def test_a_new_client_may_begin_a_second_s_worth_at_once() -> None:
    client = Client[Guest]()

    assert [client.takes_token(3.0, 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert client.takes_token(3.0, 10.34)
    assert not client.takes_token(3.0, 10.34)


def test_a_rate_below_one_allows_for_one() -> None:
    client = Client[Guest]()

    assert client.takes_token(0.5, 0.0)
    assert not client.takes_token(0.5, 1.9)
    assert client.takes_token(0.5, 3.9)


def test_a_long_rest_saves_up_no_more_than_a_second_s_worth() -> None:
    client = Client[Guest]()
    client.takes_token(2.0, 0.0)

    assert sum(client.takes_token(2.0, 1000.0) for _ in range(10)) == 2


def test_a_client_is_kept_from_the_node_that_refused_it_for_a_while() -> None:
    refusals = Refusals()
    assert not refusals.holds("192.0.2.1", NODE, 0.0)

    refusals.add("192.0.2.1", NODE, 0.0)

    assert refusals.holds("192.0.2.1", NODE, REFUSED_FOR_S - 0.01)
    assert not refusals.holds("192.0.2.1", NODE, REFUSED_FOR_S)
    assert not refusals.holds("192.0.2.1", OTHER, 0.0)
    assert not refusals.holds("192.0.2.2", NODE, 0.0)


def test_a_client_whom_every_node_refused_pauses() -> None:
    refusals = Refusals()
    assert not refusals.is_pausing("192.0.2.1", "upstreams/1", 0.0)
    assert not refusals.anybody_is_pausing

    refusals.pause("192.0.2.1", "upstreams/1", 0.5)

    assert refusals.anybody_is_pausing
    assert refusals.is_pausing("192.0.2.1", "upstreams/1", 0.5 + PAUSE_S - 0.01)
    assert not refusals.is_pausing("192.0.2.1", "upstreams/1", 0.5 + PAUSE_S)
    assert not refusals.is_pausing("192.0.2.1", "upstreams/2", 0.5)
    assert not refusals.is_pausing("192.0.2.2", "upstreams/1", 0.5)


def test_refusals_are_bounded_and_the_oldest_go() -> None:
    refusals = Refusals()
    for number in range(MAX_REFUSALS):
        refusals.add(str(number), NODE, 0.0)
    refusals.add("0", NODE, 1.0)

    refusals.add("one more", NODE, 1.0)

    assert len(refusals) == MAX_REFUSALS
    assert refusals.holds("0", NODE, 1.0)
    assert not refusals.holds("1", NODE, 1.0)


def test_a_client_s_first_token_needs_no_history() -> None:
    assert Client[Guest]().tokens == math.inf
