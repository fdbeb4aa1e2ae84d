"""The ledger as several processes see it. Most tests sit on two seats in one process: what matters is who writes where."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.core.errors import Rejected, StreamgwError
from streamgw.process import ledger as module
from streamgw.process.ledger import SEATS, WAYS, LedgerMemory, NoSeat, SharedLedger

HAMMER = Path(__file__).parents[1] / "support" / "ledger_hammer.py"
INTERVAL = {"interval_s": 1.0, "ahead_s": 0.0}


@attrs.define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@attrs.define
class Table:
    """A ledger with several seats."""

    memory: LedgerMemory
    clock: Clock
    seats: list[SharedLedger]
    full: list[int]


@contextmanager
def seated(count: int, *, sets: int = 8) -> Iterator[Table]:
    with ExitStack() as stack:
        memory = LedgerMemory(sets=sets)
        stack.callback(memory.close)
        table = Table(memory, Clock(), [], [])
        for _ in range(count):
            number = memory.take_seat()
            on_full = lambda number=number: table.full.append(number)  # noqa: E731  bound to its number
            one = SharedLedger(memory.fd, number, clock=table.clock, on_full=on_full)
            stack.callback(one.close)
            table.seats.append(one)
        yield table


def test_everyone_counts_what_all_have_counted() -> None:
    with seated(3) as table:
        one, two, three = table.seats

        counts = [one.enter("a", "x"), two.enter("a", "x"), two.enter("a", "x"), three.enter("a", "x")]

        assert counts == [1, 2, 3, 4]
        assert one.enter("a", "y") == one.enter("b", "x") == 1, "each key of each scope by itself"


def test_who_leaves_makes_room_everywhere() -> None:
    with seated(2) as table:
        one, two = table.seats
        one.enter("a", "x")
        one.enter("a", "x")

        one.leave("a", "x")
        assert two.enter("a", "x") == 2
        one.leave("a", "x")
        assert two.enter("a", "x") == 2
        two.leave("a", "x")
        two.leave("a", "x")

        assert one.enter("a", "x") == 1
        assert not two._counted, "what nobody is in is forgotten"


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("xyz"), st.booleans()), max_size=60),
    st.integers(2, 4),
)
def test_the_sum_is_what_a_ledger_of_one_process_would_say(
    moves: list[tuple[int, str, bool]], sets: int
) -> None:
    with seated(3, sets=sets) as table:
        inside: Counter[tuple[int, str]] = Counter()
        for seat, key, comes in moves:
            if comes:
                inside[seat, key] += 1
                expected = sum(inside[each, key] for each in range(3))
                assert table.seats[seat].enter("s", key) == expected
            elif inside[seat, key]:
                inside[seat, key] -= 1
                table.seats[seat].leave("s", key)


def test_what_a_dead_process_had_counted_is_gone_and_its_seat_is_free() -> None:
    with seated(3) as table:
        one, two, _ = table.seats
        one.enter("a", "x")
        two.enter("a", "x")
        two.book("a", "x", 0.0, **INTERVAL)

        table.memory.clear(1)

        assert one.enter("a", "x") == 2
        assert one.book("a", "x", 0.0, **INTERVAL) == 0.0
        assert table.memory.take_seat() == 1
        heir = SharedLedger(table.memory.fd, 1, clock=table.clock)
        assert heir.enter("a", "x") == 3
        heir.close()


def test_there_is_an_end_to_seats() -> None:
    with seated(0, sets=2) as table:
        taken = [table.memory.take_seat() for _ in range(SEATS)]

        with pytest.raises(NoSeat, match="64 processes live already"):
            table.memory.take_seat()

        assert taken == [*range(SEATS)]


def test_a_key_without_a_place_is_refused_and_told_and_takes_nothing() -> None:
    with seated(2, sets=2) as table:
        one, two = table.seats
        for number in range(2 * WAYS):
            one.enter("a", f"k{number}")

        with pytest.raises(Rejected, match="too many keys are being counted") as refused:
            one.enter("a", "one more")

        assert refused.value.status == 503
        assert table.full == [0]
        assert one.enter("a", "k0") == 2, "those that have a place are counted on"
        assert two.enter("a", "k0") == 3, "and a seat with room counts them all"
        one.leave("a", "k1")
        assert one.enter("a", "one more") == 1


@pytest.mark.parametrize("seed", range(3))
def test_two_thirds_of_all_places_can_be_taken(seed: int) -> None:
    with seated(1, sets=512) as table:
        (one,) = table.seats

        for number in range(512 * WAYS * 2 // 3):
            one.enter("a", f"{seed}.{number}")

        assert table.full == []


def test_moments_are_an_interval_apart_wherever_they_are_booked() -> None:
    with seated(3) as table:
        one, two, three = table.seats
        options = {"interval_s": 0.5, "ahead_s": 1.0}

        booked = [each.book("a", "x", 0.0, **options) for each in (one, two, three, one, two)]
        table.clock.now += 0.5
        later = [each.book("a", "x", 0.0, **options) for each in (three, one)]

    assert booked == [0.0, 0.5, 1.0, None, None]
    assert later == [1.0, None]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3)), min_size=1, max_size=60),
    st.floats(0.1, 20),
    st.integers(0, 5),
)
def test_no_stretch_of_time_has_more_moments_than_its_intervals_and_those_ahead(
    moves: list[tuple[int, float]], rate: float, burst: int
) -> None:
    with seated(3) as table:
        booked: list[float] = []
        for seat, pause in moves:
            table.clock.now += pause
            early_s = table.seats[seat].book("a", "k", 0.0, interval_s=1 / rate, ahead_s=burst / rate)
            if early_s is not None:
                booked.append(table.clock.now + early_s)

    for first, start in enumerate(booked):
        for last in range(first + 1, len(booked)):
            assert last - first <= (booked[last] - start) * rate + 1e-6


class Interrupted(SharedLedger):
    """Others get their turn between its write and its second look."""

    def interrupt(self, meanwhile: Callable[[], object]) -> None:
        def fence() -> None:
            self._fence = lambda: None
            meanwhile()

        self._fence = fence


@pytest.mark.parametrize(
    ("rivals", "ahead_s", "booked", "next_one"),
    [
        (0, 0.0, 0.0, None),
        (1, 0.0, None, None),
        (1, 1.0, 1.0, None),
        (2, 3.0, 2.0, 3.0),
        (2, 1.0, None, 1.0),
    ],
)
def test_moments_that_others_book_at_the_same_time_go_before(
    rivals: int, ahead_s: float, booked: float | None, next_one: float | None
) -> None:
    """The others had looked before it wrote: each found the key free, and took the same moment."""
    options = {"interval_s": 1.0, "ahead_s": ahead_s}
    with seated(3) as table:
        for each in table.seats:
            each.book("a", "x", 0.0, **INTERVAL)
            table.clock.now += 1
        late = Interrupted(table.memory.fd, table.memory.take_seat(), clock=table.clock)

        def write() -> None:
            for rival in table.seats[:rivals]:
                (place,) = rival._booked.values()
                rival._moments[place] = table.clock.now + 1

        late.interrupt(write)

        assert late.book("a", "x", 0.0, **options) == booked
        assert table.seats[2].book("a", "x", 0.0, **options) == next_one
        late.close()


@pytest.mark.parametrize(("ahead_s", "booked", "rivals"), [(0.0, 0.0, None), (3.0, 2.0, 1.0)])
def test_who_is_overtaken_on_the_way_is_rather_late_than_early(
    ahead_s: float, booked: float, rivals: float | None
) -> None:
    """The other has seen it, and came after it. It cannot know that."""
    options = {"interval_s": 1.0, "ahead_s": ahead_s}
    with seated(2) as table:
        seen: list[float | None] = []
        late = Interrupted(table.memory.fd, table.memory.take_seat(), clock=table.clock)
        late.interrupt(lambda: seen.append(table.seats[0].book("a", "x", 0.0, **options)))

        assert late.book("a", "x", 0.0, **options) == booked
        assert seen == [rivals]
        late.close()


def test_a_flood_of_keys_makes_it_forget_the_nearest_moment() -> None:
    with seated(1, sets=2) as table:
        (one,) = table.seats
        for number in range(2 * WAYS):
            one.book("a", f"k{number}", 0.0, interval_s=1.0 + number, ahead_s=0.0)

        one.book("a", "one more", 0.0, interval_s=9.0, ahead_s=0.0)

        assert one.book("a", "k1", 0.0, **INTERVAL) is None
        assert one.book("a", "k0", 0.0, interval_s=20.0, ahead_s=0.0) == 0.0, "forgotten"
        assert len(one._booked) == len(one._bookers) == 2 * WAYS


def test_past_moments_make_room_for_other_keys() -> None:
    with seated(1, sets=2) as table:
        (one,) = table.seats
        for number in range(2 * WAYS):
            one.book("a", f"k{number}", 0.0, interval_s=9.0, ahead_s=0.0)
        table.clock.now += 10
        one.book("a", "k0", 0.0, interval_s=9.0, ahead_s=0.0)

        one.book("a", "one more", 0.0, interval_s=9.0, ahead_s=0.0)

        assert one.book("a", "k0", 0.0, **INTERVAL) is None


def test_pages_of_a_cleared_seat_are_given_back() -> None:
    with seated(1, sets=8192) as table:
        for number in range(500):
            table.seats[0].enter("a", str(number))
        used = os.fstat(table.memory.fd).st_blocks

        table.memory.clear(0)

        assert os.fstat(table.memory.fd).st_blocks < used / 10


def test_nobody_can_cut_the_memory_under_the_feet_of_the_others() -> None:
    with seated(1) as table, pytest.raises(PermissionError):
        os.ftruncate(table.memory.fd, 0)


def test_other_memory_is_no_ledger() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 4096)
    try:
        with pytest.raises(StreamgwError, match="not a ledger of this version"):
            SharedLedger(fd, 0)
    finally:
        os.close(fd)


def test_the_owner_may_let_go_twice() -> None:
    memory = LedgerMemory(sets=2)

    memory.close()
    memory.close()

    assert memory.fd == -1


def test_a_fence_of_the_kernel_is_used_where_no_instruction_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    fence = module._fence_by_kernel()
    fence()

    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr(module, "_fence_by_kernel", lambda: fence)

    assert module.make_fence() is fence


def test_a_kernel_without_a_fence_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    number_of_nothing = -1
    monkeypatch.setattr(module, "_MEMBARRIER", number_of_nothing)

    with pytest.raises(StreamgwError, match=r"several workers need membarrier\(2\)"):
        module._fence_by_kernel()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 3])
def test_processes_that_hammer_it_never_exceed_a_limit(tmp_path: Path, limit: int) -> None:
    """Whoever was let in counts itself in a file, under a lock, and says so if there are more than the limit."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201  to repeat it
    witness = tmp_path / "witness"
    witness.write_bytes(bytes(16))
    memory = LedgerMemory()
    start, gun = os.pipe()
    with ExitStack() as stack:
        stack.callback(memory.close)
        stack.callback(os.close, start)
        with os.fdopen(gun, "wb"):
            hammers = [
                stack.enter_context(
                    _killed_at_the_end(
                        [HAMMER, memory.fd, memory.take_seat(), limit, witness, seed], memory.fd, start
                    )
                )
                for _ in range(4)
            ]
            for hammer in hammers:
                assert hammer.stdout is not None
                assert hammer.stdout.readline() == "ready\n"
        said = [hammer.communicate(timeout=60)[0].split() for hammer in hammers]

    refused, most = (list(map(int, column)) for column in zip(*said, strict=True))
    assert max(most) == limit, "it was reached, and never exceeded"
    assert sum(refused) > 100
    assert int.from_bytes(witness.read_bytes()[:8]) == 0, "all have left"


@contextmanager
def _killed_at_the_end(words: list[object], memory: int, start: int) -> Iterator[subprocess.Popen[str]]:
    """A hammer whose ledger admits too few goes on for ever."""
    command = [sys.executable, *map(str, words)]
    with subprocess.Popen(
        command, pass_fds=[memory], stdin=start, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
