"""What is kept of workers: sums that never go back."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from streamgw.control.admin.fleet import Ended, ListenerFigures
from streamgw.process.books import Books
from streamgw.process.figures import Share
from streamgw.process.members import There
from streamgw.process.status import ListenerStatus, WorkerStatus

LISTENER = "tcp *:9100"


def member(number: int) -> There:
    return There(number, 100 + number, channel=None)  # type: ignore[arg-type]  nobody is asked


def share(*, ended: int = 0, active: int = 0, size: int = 0, bugs: int = 0) -> Share:
    """So many sessions that ended and live, of so many bytes each way."""
    return Share(
        listeners=[ListenerFigures(LISTENER, active, active * size, active * size, ended + active, 1)],
        ended=[Ended(LISTENER, "closed", 200, "10.0.0.1:80", ended, ended * size, ended * size)]
        if ended
        else [],
        connections={"db": ended},
        drops=[(LISTENER, "no_route", 2)],
        bugs=bugs,
    )


def said(*, ended: int = 0, active: int = 0, state: str = "listening") -> WorkerStatus:
    return WorkerStatus(
        active=active,
        ended=ended,
        by_reason={"closed": ended},
        bytes_up=10 * (ended + active),
        listeners=[ListenerStatus(LISTENER, state, active, ended + active, {"no_route": 1})],
    )


def test_the_sum_is_that_of_all_and_of_the_supervisor() -> None:
    books, one, two = Books(lambda: Share(bugs=3)), member(0), member(1)
    books.open(one)
    books.open(two)

    books.note(one, share=share(ended=2, active=1, size=5, bugs=1), said=said(ended=2, active=1))
    books.note(two, share=share(ended=4, size=5), said=said(ended=4, state="paused"))

    total = books.share()
    assert total.bugs == 4
    assert total.connections == {"db": 6}
    assert list(total.drops) == [(LISTENER, "no_route", 4)]
    assert list(total.ended) == [Ended(LISTENER, "closed", 200, "10.0.0.1:80", 6, 30, 30)]
    assert list(total.listeners) == [ListenerFigures(LISTENER, 1, 5, 5, 7, 2)]
    status = books.status()
    assert (status.active, status.ended, status.by_reason) == (1, 6, {"closed": 6})
    assert list(status.listeners) == [ListenerStatus(LISTENER, "paused", 1, 7, {"no_route": 2})]


def test_who_says_nothing_counts_as_before() -> None:
    books, one = Books(), member(0)
    books.open(one)
    books.note(one, share=share(ended=2), said=said(ended=2))

    books.note(one)

    assert books.share().ended[0].sessions == books.status().ended == 2


def test_sessions_of_a_worker_that_is_gone_have_ended_with_it() -> None:
    books, one = Books(), member(0)
    books.open(one)
    books.note(one, share=share(ended=2, active=3, size=5), said=said(ended=2, active=3))

    books.close(one)

    total, status = books.share(), books.status()
    assert {(each.reason, each.node, each.sessions, each.bytes_up) for each in total.ended} == {
        ("closed", "10.0.0.1:80", 2, 10),
        ("lost", "", 3, 15),
    }
    assert list(total.listeners) == [ListenerFigures(LISTENER, 0, 0, 0, 5, 1)]
    assert (status.active, status.ended, status.by_reason) == (0, 5, {"closed": 2, "lost": 3})
    assert [each.state for each in status.listeners] == [""], "nobody listens there any more"


def test_who_is_gone_says_nothing_more() -> None:
    books, one = Books(), member(0)
    books.open(one)
    books.close(one)

    books.note(one, share=share(ended=2), said=said(ended=2))

    assert books.share().ended == books.share().listeners == []
    assert books.status().ended == 0


def test_what_was_said_before_the_farewell_and_comes_after_it_is_old() -> None:
    """A scrape notes what it was told when all have answered. Sessions that had ended well were counted as lost for ever."""
    books, one = Books(), member(0)
    books.open(one)
    books.note(one, share=share(ended=3, size=5), said=said(ended=3), is_final=True)

    books.note(one, share=share(ended=2, active=1, size=1), said=said(ended=2, active=1))
    books.close(one)

    assert [(each.reason, each.sessions, each.bytes_up) for each in books.share().ended] == [
        ("closed", 3, 15)
    ]
    assert books.status().by_reason == {"closed": 3}


def test_an_endless_row_of_workers_with_ever_new_nodes_does_not_grow_for_ever() -> None:
    books = Books()
    for number in range(3):
        one = member(number)
        books.open(one)
        nodes = [Ended(LISTENER, "closed", 200, f"10.{number}.0.1:{port}", 1, 1, 1) for port in range(3000)]
        books.note(one, share=Share(ended=nodes))
        books.close(one)

    total = books.share()
    assert len(total.ended) <= 4096
    assert sum(each.sessions for each in total.ended) == 9000


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40)
)
def test_no_counter_ever_goes_back(moves: list[tuple[int, int, int, bool]]) -> None:
    books, members = Books(), {number: member(number) for number in range(3)}
    state = dict.fromkeys(range(3), (0, 0))
    for each in members.values():
        books.open(each)
    before = (0, 0, 0)
    for number, more_ended, active, dies in moves:
        ended, was_active = state[number]
        state[number] = (
            ended + min(more_ended, was_active),
            was_active - min(more_ended, was_active) + active,
        )
        if dies:
            books.close(members[number])
            members[number], state[number] = member(number), (0, 0)
            books.open(members[number])
        else:
            now = state[number]
            books.note(
                members[number],
                share=share(ended=now[0], active=now[1], size=1),
                said=said(ended=now[0], active=now[1]),
            )
        total, status = books.share(), books.status()
        accepted = sum(each.accepted for each in total.listeners)
        sizes = sum(each.bytes_up for each in (*total.ended, *total.listeners))
        after = (accepted, sizes, status.ended)
        assert all(new >= old for new, old in zip(after, before, strict=True))
        before = after


def test_a_listener_that_one_worker_still_drains_is_listening() -> None:
    books = Books()
    for number, state in enumerate(("draining", "listening", "draining")):
        one = member(number)
        books.open(one)
        books.note(one, said=said(state=state))

    assert [each.state for each in books.status().listeners] == ["listening"]


def test_a_row_is_not_changed_by_adding_it_up() -> None:
    books, one, two = Books(), member(0), member(1)
    books.open(one)
    books.open(two)
    noted = share(ended=1)
    books.note(one, share=noted)
    books.note(two, share=share(ended=1))

    books.share()

    assert attrs.asdict(noted) == attrs.asdict(share(ended=1))
