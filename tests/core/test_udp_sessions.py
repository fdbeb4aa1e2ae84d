"""The table of UDP sessions: beginnings, datagrams, ends; limits and rules."""

from __future__ import annotations

from collections.abc import Hashable

import attrs
import pytest

from streamgw.core import udp_sessions
from streamgw.core.bucket import Bucket, Gate
from streamgw.core.errors import Reason
from streamgw.core.udp_sessions import Drop, Entry, ListenerSessions, Table, UDPLimits


def to_upstream(_: memoryview) -> int:
    """send(2), which has nowhere to send to."""
    return 0


@attrs.define
class Scene:
    """A table, two listeners, and what was told. The time is where a test puts it."""

    limits: UDPLimits = UDPLimits()
    now: float = 100.0
    ended: list[Entry] = attrs.Factory(list)
    listener: ListenerSessions = attrs.Factory(ListenerSessions)
    elsewhere: ListenerSessions = attrs.Factory(ListenerSessions)
    table: Table = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.table = Table(self.limits, self.ended.append)

    def arrive(
        self,
        key: Hashable = 1,
        client: str = "192.0.2.1",
        *,
        at: ListenerSessions | None = None,
        **rules: object,
    ) -> Entry | Drop:
        """A datagram of ten bytes that belongs to no session."""
        home = at or self.listener
        drop = self.table.admit(home, client, 10, self.now)
        if drop is not None:
            home.drops[drop] += 1
            return drop
        entry = Entry(key=key, client=client, home=home, **rules)
        self.table.add(entry, self.now)
        assert self.table.accept(entry, 10, self.now)
        assert self.table.hold(entry, bytes(10))
        return entry

    def begin(self, key: Hashable = 1, client: str = "192.0.2.1", **rules: object) -> Entry:
        """A session that is open."""
        entry = self.arrive(key, client, **rules)
        assert isinstance(entry, Entry)
        for _ in self.table.unqueue(entry):
            pass
        self.table.opened(entry, to_upstream, self.now)
        self.check()
        return entry

    def ask(self, entry: Entry, size: int = 10) -> bool:
        """A further datagram of the client of an open session; what the shell does with it."""
        assert entry.queue is None
        accepted = self.table.accept(entry, size, self.now)
        if accepted:
            self.table.settle(entry)
        self.check()
        return accepted

    def answer(self, entry: Entry, size: int = 10) -> bool:
        passed = self.table.answer(entry, size, self.now)
        self.table.settle(entry)
        self.check()
        return passed

    def serve(self, entry: Entry) -> Entry:
        """Make it an assured one."""
        self.answer(entry)
        self.ask(entry)
        assert entry.assured
        return entry

    def sweep(self) -> None:
        for _ in self.table.sweep(lambda: self.now):
            self.check()
        self.check()

    def check(self) -> None:
        self.table.check_invariants([self.listener, self.elsewhere])


def limited(**limits: object) -> Scene:
    return Scene(UDPLimits(**limits))


# A session


def test_a_session_is_found_by_its_client() -> None:
    scene = Scene()

    entry = scene.begin(key=("192.0.2.1", 5353))

    assert scene.listener.by_key == {("192.0.2.1", 5353): entry}
    assert len(scene.table) == 1
    assert (entry.datagrams_up, entry.bytes_up) == (1, 10)


def test_two_sessions_can_not_share_a_key() -> None:
    scene = Scene()
    scene.begin(1)

    with pytest.raises(AssertionError, match="one session by one key"):
        scene.arrive(1)


def test_an_ended_session_is_forgotten_and_told_of_once() -> None:
    scene = Scene()
    entry = scene.begin()

    scene.table.end(entry, Reason.CONNECT_FAILED, "upstream", "connection refused")
    scene.table.end(entry, Reason.DRAIN)

    assert scene.ended == [entry]
    assert (entry.reason, entry.side, entry.detail) == (
        Reason.CONNECT_FAILED,
        "upstream",
        "connection refused",
    )
    assert not scene.listener.by_key
    assert scene.table.is_empty
    scene.check()


def test_datagrams_are_counted_both_ways() -> None:
    scene = Scene()
    entry = scene.begin()

    scene.answer(entry, 300)
    scene.ask(entry, 20)
    scene.answer(entry, 0)

    assert (entry.datagrams_up, entry.datagrams_down) == (2, 2)
    assert (entry.bytes_up, entry.bytes_down) == (30, 300)


# The fast path


def test_the_pump_gets_the_socket_once_the_client_is_assured() -> None:
    scene = Scene()
    entry = scene.begin()
    assert (entry.send, entry.plain) == (None, False)

    scene.answer(entry)
    assert (entry.send, entry.plain) == (None, True)

    scene.ask(entry)
    assert (entry.send, entry.plain) == (to_upstream, True)


@pytest.mark.parametrize(
    ("rules", "may_send", "is_plain"),
    [
        ({"requests": 100}, False, True),
        ({"responses": 5}, True, False),
        ({"amplification": 3.0}, True, True),
    ],
)
def test_a_rule_that_must_be_looked_at_keeps_the_pump_from_it(
    rules: dict[str, object], may_send: bool, is_plain: bool
) -> None:
    scene = Scene()

    entry = scene.serve(scene.begin(**rules))

    assert (entry.send is not None, entry.plain) == (may_send, is_plain)


def test_an_answer_to_a_client_that_may_be_forged_is_never_plain() -> None:
    scene = Scene()
    entry = scene.begin(amplification=3.0)

    scene.answer(entry)

    assert not entry.plain


def test_without_a_sender_every_datagram_is_looked_at_until_there_is_one() -> None:
    scene = Scene()
    entry = scene.arrive()
    assert isinstance(entry, Entry)
    list(scene.table.unqueue(entry))
    scene.table.opened(entry, None, scene.now)
    scene.serve(entry)
    assert entry.send is None

    scene.table.may_send(entry, to_upstream)

    assert entry.send is to_upstream


def test_who_has_ended_has_no_fast_path() -> None:
    scene = Scene()
    entry = scene.serve(scene.begin())

    scene.table.end(entry, Reason.KILLED)

    assert (entry.send, entry.plain) == (None, False)


# While the socket is being opened


def test_what_comes_before_the_socket_waits_in_order() -> None:
    scene = limited(queue_datagrams=3)
    entry = scene.arrive()
    assert isinstance(entry, Entry)
    for payload in (b"two", b""):
        assert scene.table.accept(entry, len(payload), scene.now)
        assert scene.table.hold(entry, payload)
    assert entry.datagrams_up == 0

    assert list(scene.table.unqueue(entry)) == [bytes(10), b"two", b""]
    assert entry.datagrams_up == 3
    assert scene.table.queued_bytes == 0


def test_the_queue_is_bounded_in_datagrams() -> None:
    scene = limited(queue_datagrams=1)
    entry = scene.arrive()
    assert isinstance(entry, Entry)

    assert scene.table.accept(entry, 3, scene.now)
    assert not scene.table.hold(entry, b"two")

    assert (entry.lost, entry.bytes_up) == (1, 10)
    assert scene.listener.drops == {Drop.QUEUE_FULL: 1}
    scene.check()


def test_all_queues_together_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_sessions, "MAX_QUEUED_BYTES", 25)
    scene = Scene()
    first, second = scene.arrive(1), scene.arrive(2)
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)

    assert scene.arrive(3) is Drop.QUEUE_FULL
    assert not scene.table.hold(first, bytes(10))
    assert scene.table.hold(first, bytes(5))
    scene.table.end(second, Reason.NO_NODE)

    assert scene.table.queued_bytes == 15


def test_what_waited_for_a_session_that_could_not_be_opened_is_lost() -> None:
    scene = Scene()
    entry = scene.arrive()
    assert isinstance(entry, Entry)

    scene.table.end(entry, Reason.NO_NODE)

    assert (entry.datagrams_up, entry.bytes_up, entry.lost) == (0, 0, 1)
    assert scene.listener.drops == {Drop.UNOPENED: 1}
    scene.check()


def test_a_datagram_may_be_lost_after_it_was_accepted() -> None:
    scene = Scene()
    entry = scene.begin()
    scene.table.accept(entry, 7, scene.now)

    scene.table.lose(entry, 7, Drop.SEND_FAILED)

    assert (entry.datagrams_up, entry.bytes_up, entry.lost) == (1, 10, 1)


def test_a_session_that_is_opened_before_its_first_datagram_waits_for_it() -> None:
    scene = Scene()
    entry = Entry(key=1, client="192.0.2.1", home=scene.listener, responses=0)
    scene.table.add(entry, scene.now)
    scene.table.opened(entry, to_upstream, scene.now)
    assert entry.reason is None

    scene.ask(entry)

    assert entry.reason is Reason.CLOSED


# Rules


def test_a_session_ends_with_the_last_answer_it_waits_for() -> None:
    scene = Scene()
    entry = scene.begin(responses=2)
    scene.answer(entry)
    scene.ask(entry)
    for _ in range(2):
        scene.answer(entry)
        assert entry.reason is None

    scene.answer(entry)

    assert entry.reason is Reason.CLOSED


def test_zero_responses_end_it_with_the_datagram() -> None:
    scene = Scene()

    entry = scene.begin(responses=0)

    assert entry.reason is Reason.CLOSED
    assert entry.datagrams_up == 1


def test_a_datagram_that_was_lost_is_not_waited_for() -> None:
    scene = Scene()
    entry = scene.begin(responses=1)
    scene.table.accept(entry, 7, scene.now)
    scene.table.lose(entry, 7, Drop.SEND_FAILED)

    scene.answer(entry)

    assert entry.reason is Reason.CLOSED


def test_the_datagram_after_the_last_request_finds_no_session() -> None:
    scene = Scene()
    entry = scene.begin(requests=2)
    assert scene.listener.by_key

    scene.ask(entry)

    assert not scene.listener.by_key
    assert entry.reason is None
    assert len(scene.table) == 1
    assert scene.answer(entry), "it still passes on its answers"


def test_with_both_rules_it_waits_for_all_requests_and_all_answers_as_nginx_does() -> None:
    scene = Scene()
    entry = scene.begin(requests=2, responses=1)
    scene.answer(entry)
    assert entry.reason is None
    scene.ask(entry)
    assert entry.reason is None

    scene.answer(entry)

    assert entry.reason is Reason.CLOSED


def test_a_successor_may_have_the_key_of_a_session_that_still_answers() -> None:
    scene = Scene()
    before = scene.begin(requests=1)
    after = scene.begin(requests=2)

    scene.table.end(before, Reason.IDLE_TIMEOUT)

    assert scene.listener.by_key == {1: after}


def test_until_the_client_answers_it_gets_so_much_for_each_byte_and_no_more() -> None:
    scene = Scene()
    entry = scene.begin(amplification=3.0)

    assert [scene.answer(entry, 15) for _ in range(3)] == [True, True, False]
    assert (entry.bytes_down, entry.datagrams_down, entry.withheld) == (30, 2, 1)
    assert scene.listener.drops == {Drop.AMPLIFICATION: 1}

    scene.ask(entry)
    assert scene.answer(entry, 60_000)


def test_a_client_that_was_given_nothing_has_answered_nothing() -> None:
    scene = Scene()
    entry = scene.begin(amplification=1.0)
    assert not scene.answer(entry, 500)

    scene.ask(entry)

    assert not entry.assured
    assert not scene.answer(entry, 500)


def test_an_answer_that_was_withheld_counts_as_one_for_the_end() -> None:
    scene = Scene()
    entry = scene.begin(amplification=1.0, responses=1)

    assert not scene.answer(entry, 500)

    assert entry.reason is Reason.CLOSED


def test_an_answer_may_be_withheld_because_the_kernel_does_not_take_it() -> None:
    scene = Scene()
    entry = scene.begin()
    scene.answer(entry, 500)

    scene.table.withhold(entry, 500, Drop.SEND_FAILED)

    assert (entry.datagrams_down, entry.bytes_down, entry.withheld) == (0, 0, 1)


# Gates


def test_a_datagram_that_comes_too_fast_goes_nowhere_and_is_counted() -> None:
    scene = Scene()
    entry = scene.begin(up=Gate([Bucket(100, 10)]))
    assert scene.table.lets_pass(entry, 10, scene.now)

    assert scene.ask(entry)
    assert not scene.table.lets_pass(entry, 10, scene.now)

    assert scene.listener.drops == {Drop.BANDWIDTH: 1}
    assert (entry.lost, entry.asked, entry.bytes_up) == (1, 1, 10)
    scene.now += 1
    assert scene.table.lets_pass(entry, 10, scene.now)


def test_an_answer_that_comes_too_fast_is_withheld() -> None:
    scene = Scene()
    entry = scene.serve(scene.begin(down=Gate([Bucket(100, 10)])))

    assert [scene.answer(entry, 500) for _ in range(2)] == [False, False], "the first was more than there was"

    assert scene.listener.drops == {Drop.BANDWIDTH: 2}
    assert (entry.withheld, entry.datagrams_down) == (2, 1)


def test_the_pump_asks_about_every_datagram_that_has_to_pass_a_gate() -> None:
    scene = Scene()
    up, down, free = (
        scene.serve(scene.begin(number, **rules))
        for number, rules in enumerate([{"up": Gate()}, {"down": Gate()}, {}])
    )

    assert (up.send, up.plain) == (None, True)
    assert (down.send, down.plain) == (to_upstream, False)
    assert (free.send, free.plain) == (to_upstream, True)
    assert scene.table.lets_pass(free, 10, scene.now)


# A node that goes away


def test_the_next_datagram_after_its_node_is_gone_is_another_session_s() -> None:
    scene = Scene()
    entry = scene.serve(scene.begin())

    scene.table.part_from_node(entry)
    assert entry.send is None
    assert scene.answer(entry), "its answers still come"

    assert not scene.ask(entry)
    assert entry.reason is Reason.MOVED


def test_it_stays_while_it_is_owed_answers() -> None:
    scene = Scene()
    entry = scene.begin(responses=1)
    scene.table.part_from_node(entry)

    assert not scene.ask(entry)
    assert entry.reason is None
    assert not scene.listener.by_key

    scene.answer(entry)
    assert entry.reason is Reason.MOVED


def test_it_stays_while_it_is_being_opened() -> None:
    scene = Scene()
    entry = scene.arrive()
    assert isinstance(entry, Entry)
    scene.table.part_from_node(entry)

    assert not scene.table.accept(entry, 10, scene.now)

    assert entry.reason is None
    assert entry.detached


def test_who_has_ended_has_no_node_to_part_from() -> None:
    scene = Scene()
    entry = scene.serve(scene.begin())
    scene.table.end(entry, Reason.KILLED)

    scene.table.part_from_node(entry)

    assert not entry.stale


def test_one_that_is_done_before_the_client_comes_again_just_closed() -> None:
    scene = Scene()
    entry = scene.begin(responses=1)
    scene.table.part_from_node(entry)

    scene.answer(entry)

    assert entry.reason is Reason.CLOSED


# Time


def test_a_session_without_datagrams_times_out() -> None:
    scene = Scene()
    entry = scene.begin(idle_s=5.0)
    scene.now += 4.9
    scene.answer(entry)
    scene.now += 4.9
    scene.sweep()
    assert entry.reason is None

    scene.now += 0.1
    scene.sweep()

    assert entry.reason is Reason.IDLE_TIMEOUT


def test_a_session_does_not_last_forever() -> None:
    scene = Scene()
    entry = scene.begin(ends_at=160.0)
    scene.now = 160.0

    scene.sweep()

    assert entry.reason is Reason.MAX_DURATION


def test_a_big_table_is_swept_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_sessions, "SLICE", 2)
    scene = Scene()
    for key in range(5):
        scene.begin(key, idle_s=1.0)
    scene.now += 1

    left = []
    for _ in scene.table.sweep(lambda: scene.now):
        left.append(len(scene.table))
        for entry in tuple(scene.listener.by_key.values()):  # some end between two slices
            scene.table.end(entry, Reason.KILLED)

    assert left == [3, 0, 0]
    assert len(scene.ended) == 5


# Limits


def test_at_the_limit_of_the_process_the_least_active_fresh_one_goes() -> None:
    scene = limited(max_sessions=2)
    first, second = scene.begin(1), scene.begin(2)
    scene.now += 1
    scene.answer(first)

    third = scene.begin(3)

    assert second.reason is Reason.EVICTED
    assert set(scene.listener.by_key.values()) == {first, third}


def test_a_flood_of_single_datagrams_evicts_itself_and_nobody_who_is_served() -> None:
    scene = limited(max_sessions=5)
    served = [scene.serve(scene.begin(key)) for key in range(3)]

    for source in range(1000):
        scene.now += 0.01
        scene.begin(("forged", source), f"198.51.100.{source % 256}")

    assert [entry.reason for entry in served] == [None] * 3
    assert len(scene.table) == 5


def test_where_everybody_is_served_the_new_one_is_turned_away_for_ten_seconds() -> None:
    scene = limited(max_sessions=1)
    served = scene.serve(scene.begin(1))

    assert scene.arrive(2) is Drop.SESSION_LIMIT
    scene.now += 10

    scene.begin(2)
    assert served.reason is Reason.EVICTED


def test_a_listener_s_own_limit_goes_first() -> None:
    scene = limited(max_sessions_per_listener=5)
    scene.listener.max_sessions = 1
    scene.serve(scene.begin(1))

    assert scene.arrive(2) is Drop.LISTENER_LIMIT
    assert isinstance(scene.arrive(2, at=scene.elsewhere), Entry)
    scene.check()


def test_the_limit_of_a_listener_evicts_at_that_listener() -> None:
    scene = limited(max_sessions_per_listener=1)
    other = scene.arrive(1, at=scene.elsewhere)
    assert isinstance(other, Entry)
    scene.now += 1
    mine = scene.begin(1)

    scene.begin(2)

    assert (other.reason, mine.reason) == (None, Reason.EVICTED)
    scene.check()


def test_the_limit_of_a_client_evicts_his_own() -> None:
    scene = limited(max_sessions_per_client=2)
    other = scene.begin(0, "192.0.2.9")
    mine = [scene.begin(key) for key in (1, 2)]

    scene.begin(3)

    assert [entry.reason for entry in (other, *mine)] == [None, Reason.EVICTED, None]


def test_a_client_with_as_many_served_sessions_as_he_may_have_gets_no_more() -> None:
    scene = limited(max_sessions_per_client=1)
    scene.serve(scene.begin(1))

    assert scene.arrive(2) is Drop.CLIENT_LIMIT
    assert isinstance(scene.arrive(3, "192.0.2.9"), Entry)


def test_a_lower_limit_ends_nobody() -> None:
    scene = Scene()
    entries = [scene.serve(scene.begin(key)) for key in range(3)]

    scene.table.limits = UDPLimits(max_sessions=1)

    assert scene.arrive(4) is Drop.SESSION_LIMIT
    assert [entry.reason for entry in entries] == [None] * 3


def test_a_client_may_begin_so_many_sessions_a_second() -> None:
    scene = limited(session_rate_per_client=2.0)
    assert [isinstance(scene.arrive(key), Entry) for key in range(4)] == [True, True, False, False]
    assert scene.listener.drops == {Drop.CLIENT_RATE: 2}
    assert isinstance(scene.arrive(9, "192.0.2.9"), Entry)

    scene.now += 0.5

    assert [isinstance(scene.arrive(key), Entry) for key in (4, 5)] == [True, False]
    scene.check()


def test_ending_sessions_does_not_help_a_client_over_his_rate() -> None:
    scene = limited(session_rate_per_client=1.0)
    scene.table.end(scene.begin(1), Reason.CLOSED)

    assert scene.arrive(1) is Drop.CLIENT_RATE
    assert not scene.table.is_empty, "it is remembered"

    scene.now += 1
    scene.sweep()
    assert scene.table.is_empty
    assert isinstance(scene.arrive(1), Entry)
    scene.check()


def test_who_keeps_trying_is_remembered_and_keeps_nobody_else_in_memory() -> None:
    scene = limited(session_rate_per_client=1.0)
    for client in ("192.0.2.1", "192.0.2.2"):
        scene.table.end(scene.begin(1, client), Reason.CLOSED)
    scene.now += 0.9
    assert scene.arrive(1, "192.0.2.1") is Drop.CLIENT_RATE
    scene.now += 0.2

    scene.sweep()

    assert not scene.table.is_empty
    assert list(scene.table._resting) == ["192.0.2.1"]


def test_memory_of_rates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_sessions, "MAX_RESTING_CLIENTS", 2)
    scene = limited(session_rate_per_client=1.0)

    for number in range(5):
        scene.table.end(scene.begin(1, f"192.0.2.{number}"), Reason.CLOSED)

    assert list(scene.table._resting) == ["192.0.2.3", "192.0.2.4"]
    scene.check()


def test_a_rate_that_is_no_longer_limited_is_no_longer_remembered() -> None:
    scene = limited(session_rate_per_client=1.0)
    scene.table.end(scene.begin(1), Reason.CLOSED)

    scene.table.limits = UDPLimits()
    scene.sweep()

    assert scene.table.is_empty
