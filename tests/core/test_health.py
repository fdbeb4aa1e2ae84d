"""Results of probes and sessions in, nodes up or down out: on a clock that only these tests move."""

from __future__ import annotations

import math
import random

import attrs
import pytest

from streamgw.core.health import MAX_COOL_DOWNS, Change, Status, UpstreamHealth
from streamgw.core.model import Address
from streamgw.core.probe import ActiveCheck, Checks, Ejection, Finding, Result, Thresholds

A, B, C, D = (Address(f"10.0.0.{number}", 80) for number in (1, 2, 3, 4))
OK = Finding(Result.SUCCESS)
REFUSED = Finding(Result.TCP_FAILURE, "connection refused")
SLOW = Finding(Result.TIMEOUT, "did not answer within 1 s")
BROKEN = Finding(Result.HTTP_FAILURE, "answered 503")
ODD = Finding(Result.NEITHER, "answered 418")
PASSIVE = Thresholds(successes=5, tcp_failures=2, timeouts=7)


@attrs.define
class Scene:
    """A clock, and the nodes a and b of an upstream."""

    health: UpstreamHealth
    now: float = 1000.0

    def probe(self, *findings: Finding, node: Address = A) -> Change | None:
        """Returns the last change."""
        changes = [self.health.probed(node, finding, self.now) for finding in findings]
        return changes[-1]

    def session(self, *findings: Finding, node: Address = A) -> Change | None:
        change = None
        for finding in findings:
            if finding is OK:
                change = self.health.answered(node)
            else:
                change = self.health.failed(node, finding, self.now)
        return change

    def later(self, seconds: float) -> list[Change]:
        self.now += seconds
        return list(self.health.tick(self.now))

    def status(self, node: Address = A) -> Status:
        return self.health.nodes[node].status

    def is_up(self, node: Address = A) -> bool:
        return self.health.nodes[node].is_up


def scene(**checks: object) -> Scene:
    built = Scene(UpstreamHealth(Checks(**checks)))  # type: ignore[arg-type]  fields by name, as a file has them
    built.health.keep([A, B])
    return built


def probed_scene(**thresholds: int) -> Scene:
    wanted = attrs.evolve(ActiveCheck().thresholds, **thresholds)
    return scene(active=ActiveCheck(thresholds=wanted))


# ── Probes ───────────────────────────────────────────────────────────────────────────────────────


def test_a_node_begins_healthy() -> None:
    built = probed_scene()

    assert (built.status(), built.is_up()) == (Status.HEALTHY, True)
    assert not built.health.is_all_down
    assert built.health.due_at == math.inf


def test_failures_in_a_row_take_a_node_down() -> None:
    built = probed_scene()

    assert built.probe(REFUSED) == Change(
        A, Status.HEALTHY, Status.MOSTLY_HEALTHY, was_up=True, is_up=True, why="connection refused"
    )
    assert built.probe(REFUSED) == Change(
        A, Status.MOSTLY_HEALTHY, Status.UNHEALTHY, was_up=True, is_up=False, why="connection refused"
    )
    assert built.is_up(B)


@pytest.mark.parametrize(("finding", "limit"), [(REFUSED, 2), (SLOW, 3), (BROKEN, 5)])
def test_each_kind_of_failure_has_its_own_count(finding: Finding, limit: int) -> None:
    built = probed_scene()

    built.probe(*[finding] * (limit - 1))
    assert built.is_up()
    built.probe(finding)
    assert not built.is_up()


def test_a_success_forgets_the_failures_before_it() -> None:
    built = probed_scene()

    built.probe(REFUSED, OK, REFUSED, OK, REFUSED)

    assert built.status() is Status.MOSTLY_HEALTHY


def test_a_node_is_healthy_again_after_successes_in_a_row() -> None:
    built = probed_scene()
    built.probe(REFUSED, REFUSED)

    assert built.probe(OK) == Change(
        A, Status.UNHEALTHY, Status.MOSTLY_UNHEALTHY, was_up=False, is_up=False, why="1 probe succeeded"
    )
    built.probe(REFUSED)
    assert built.status() is Status.UNHEALTHY
    assert built.probe(OK, OK) == Change(
        A, Status.MOSTLY_UNHEALTHY, Status.HEALTHY, was_up=False, is_up=True, why="2 probes succeeded"
    )


def test_one_success_can_be_enough() -> None:
    built = probed_scene(successes=1)
    built.probe(REFUSED, REFUSED)

    change = built.probe(OK)

    assert change is not None
    assert change.why == "1 probe succeeded"


def test_a_node_that_failed_once_is_healthy_after_as_many_successes() -> None:
    built = probed_scene()

    built.probe(REFUSED, OK)
    assert built.status() is Status.MOSTLY_HEALTHY
    built.probe(OK)
    assert built.status() is Status.HEALTHY
    assert built.probe(OK) is None


def test_what_is_neither_success_nor_failure_changes_nothing() -> None:
    built = probed_scene()

    built.probe(REFUSED, ODD, REFUSED)

    assert not built.is_up()


def test_a_count_of_zero_switches_results_of_that_kind_off() -> None:
    built = probed_scene(tcp_failures=0, successes=0)

    built.probe(*[REFUSED] * 9)
    assert built.status() is Status.HEALTHY
    built.probe(SLOW, SLOW, SLOW, OK, OK, OK)
    assert built.status() is Status.UNHEALTHY


def test_all_down_is_told() -> None:
    built = probed_scene()

    built.probe(REFUSED, REFUSED)
    assert not built.health.is_all_down
    built.probe(REFUSED, REFUSED, node=B)
    assert built.health.is_all_down


# ── Sessions ─────────────────────────────────────────────────────────────────────────────────────


def test_sessions_take_a_node_down_between_two_probes_and_only_probes_bring_it_back() -> None:
    built = scene(active=ActiveCheck(), passive=PASSIVE)

    built.session(REFUSED, REFUSED)
    assert not built.is_up()
    built.session(*[OK] * 9)
    assert not built.is_up()
    assert built.later(1e6) == []
    built.probe(OK, OK)
    assert built.status() is Status.HEALTHY


def test_sessions_that_connect_do_not_hide_what_probes_find() -> None:
    built = scene(active=ActiveCheck(), passive=PASSIVE)

    for _ in range(5):
        built.probe(BROKEN)
        built.session(*[OK] * 9)

    assert not built.is_up()


def test_a_node_that_probes_doubt_is_not_healthy_because_sessions_say_so() -> None:
    built = scene(active=ActiveCheck(), passive=PASSIVE)

    built.probe(BROKEN)
    built.session(*[OK] * 9)
    assert built.status() is Status.MOSTLY_HEALTHY
    built.probe(OK, OK)
    assert built.status() is Status.HEALTHY


def test_timeouts_of_sessions_have_a_count_of_their_own() -> None:
    built = scene(active=ActiveCheck(), passive=PASSIVE)

    built.session(*[SLOW] * 6)
    assert built.is_up()
    built.session(SLOW)
    assert not built.is_up()


def test_without_passive_checks_sessions_are_not_counted() -> None:
    built = scene(active=ActiveCheck())

    built.session(REFUSED, REFUSED, REFUSED)
    assert built.status() is Status.HEALTHY
    built.probe(REFUSED)
    built.session(*[OK] * 9)
    assert built.status() is Status.MOSTLY_HEALTHY


def test_without_probes_a_node_is_tried_again_after_a_while() -> None:
    built = scene(passive=PASSIVE, recover_after_s=10.0)
    built.session(REFUSED, REFUSED)

    assert built.health.due_at == built.now + 10
    assert built.later(9.9) == []
    assert built.later(0.1) == [
        Change(A, Status.UNHEALTHY, Status.MOSTLY_HEALTHY, False, True, "its time out is over")
    ]
    assert built.health.due_at == math.inf


def test_a_node_that_fails_again_at_once_waits_longer_each_time_up_to_a_limit() -> None:
    built = scene(passive=PASSIVE, recover_after_s=10.0)
    built.session(REFUSED, REFUSED)

    waits = []
    for _ in range(6):
        waits.append(built.health.due_at - built.now)
        built.later(waits[-1])
        built.session(REFUSED)

    assert waits == [10, 20, 40, 80, 100, 100]
    assert max(waits) == 10 * MAX_COOL_DOWNS


def test_a_node_that_does_well_after_its_time_out_is_trusted_again() -> None:
    built = scene(passive=PASSIVE, recover_after_s=10.0)
    built.session(REFUSED, REFUSED)
    built.later(10)

    built.session(*[OK] * 5)
    assert built.status() is Status.HEALTHY
    built.session(REFUSED)
    assert built.is_up()
    built.session(REFUSED)
    assert built.health.due_at == built.now + 10


def test_while_all_nodes_are_used_though_down_their_successes_count() -> None:
    built = scene(passive=PASSIVE)
    built.session(REFUSED, REFUSED)

    built.session(*[OK] * 5)

    assert built.status() is Status.HEALTHY
    assert built.health.due_at == math.inf


def test_without_a_count_of_successes_a_node_is_healthy_after_its_time_out() -> None:
    built = scene(passive=attrs.evolve(PASSIVE, successes=0))
    built.session(REFUSED, REFUSED)

    built.later(30)

    assert built.status() is Status.HEALTHY


# ── Ejection ─────────────────────────────────────────────────────────────────────────────────────


def ejecting(max_percent: int = 50) -> Scene:
    built = scene(ejection=Ejection(failures=3, time_s=10, max_time_s=25, max_percent=max_percent))
    built.health.keep([A, B, C, D])
    return built


def test_a_node_that_fails_in_a_row_is_left_out_for_a_time_that_grows() -> None:
    built = ejecting()

    times = []
    for _ in range(4):
        change = built.session(REFUSED, REFUSED, REFUSED)
        assert change is not None
        assert change.why == "3 connects failed in a row: connection refused"
        assert (change.now, change.is_up) == (Status.HEALTHY, False)
        times.append(built.health.due_at - built.now)
        built.later(times[-1])
        assert built.is_up()

    assert times == [10, 20, 25, 25]


def test_a_node_that_was_well_for_long_begins_with_the_shortest_time_again() -> None:
    built = ejecting()
    built.session(REFUSED, REFUSED, REFUSED)
    built.later(10)

    built.later(25.1)
    built.session(REFUSED, REFUSED, REFUSED)

    assert built.health.due_at == built.now + 10


def test_only_failures_in_a_row_eject() -> None:
    built = ejecting()

    built.session(REFUSED, REFUSED, OK, REFUSED, REFUSED)

    assert built.is_up()


def test_no_more_than_a_share_of_the_nodes_is_out_at_a_time() -> None:
    built = ejecting()

    for node in (A, B, C, D):
        built.session(*[REFUSED] * 5, node=node)

    assert [built.is_up(node) for node in (A, B, C, D)] == [False, False, True, True]


def test_a_node_that_is_out_is_not_ejected_again() -> None:
    built = ejecting()
    built.session(REFUSED, REFUSED, REFUSED)
    due_at = built.health.due_at

    built.session(REFUSED, REFUSED, REFUSED)

    assert built.health.due_at == due_at


def test_a_node_that_is_down_is_not_ejected_as_well() -> None:
    """Connects that began while it was up time out when probes have found it down: once it was well, it was still left out."""
    built = ejecting()
    built.health.obey(attrs.evolve(built.health.checks, active=ActiveCheck()), built.now)
    built.session(SLOW, SLOW)
    built.probe(REFUSED, REFUSED)
    assert built.status() is Status.UNHEALTHY

    built.session(SLOW, SLOW, SLOW)
    built.probe(OK, OK)
    assert built.is_up()

    assert built.session(SLOW, SLOW) is None
    change = built.session(SLOW)
    assert change is not None
    assert change.why == "3 connects failed in a row: did not answer within 1 s"


def test_a_node_that_only_its_probes_find_well_is_ejected() -> None:
    built = ejecting()
    built.health.obey(attrs.evolve(built.health.checks, active=ActiveCheck(), passive=PASSIVE), built.now)
    built.session(REFUSED, REFUSED)
    assert built.status() is Status.UNHEALTHY

    built.probe(OK, OK)
    assert built.is_up()
    change = built.session(REFUSED)

    assert change is not None
    assert change.why == "3 connects failed in a row: connection refused"


def test_a_node_that_is_alone_is_never_ejected() -> None:
    built = ejecting()
    built.health.keep([A])

    built.session(*[REFUSED] * 9)

    assert built.is_up()


# ── Edits ────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_that_stays_keeps_its_state_and_one_that_comes_back_is_new() -> None:
    built = probed_scene()
    built.probe(REFUSED, REFUSED)

    built.health.keep([C, A])
    assert (built.is_up(), built.is_up(C)) == (False, True)
    assert list(built.health.nodes) == [C, A]
    built.health.keep([C])
    built.health.keep([A])
    assert built.is_up()


def test_news_of_a_node_that_is_gone_are_ignored() -> None:
    built = scene(active=ActiveCheck(), passive=PASSIVE)

    assert built.probe(REFUSED, node=C) is None
    assert built.session(REFUSED, OK, node=C) is None
    assert not UpstreamHealth(Checks()).is_all_down


def test_a_probe_that_ends_after_its_check_was_removed_is_ignored() -> None:
    built = probed_scene()
    built.health.obey(Checks(passive=PASSIVE), built.now)

    assert built.probe(REFUSED, REFUSED) is None
    assert built.is_up()


def test_other_thresholds_hold_from_the_next_result_on() -> None:
    built = probed_scene()
    built.probe(BROKEN, BROKEN)

    stricter = attrs.evolve(ActiveCheck().thresholds, http_failures=3)
    built.health.obey(Checks(active=ActiveCheck(thresholds=stricter)), built.now)
    built.probe(BROKEN)

    assert not built.is_up()


def test_a_node_that_is_down_when_its_probes_are_removed_is_tried_again() -> None:
    built = probed_scene()
    built.probe(REFUSED, REFUSED)

    built.health.obey(Checks(passive=PASSIVE, recover_after_s=10), built.now)
    built.later(10)

    assert built.is_up()


def test_checks_of_nothing_bring_a_node_back_as_healthy() -> None:
    built = probed_scene()
    built.probe(REFUSED, REFUSED)

    built.health.obey(Checks(), built.now)
    built.later(30)

    assert built.status() is Status.HEALTHY


# ── Histories ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(200))
def test_any_history_keeps_its_promises(seed: int) -> None:
    """No more ejected than allowed; changes tell exactly what changed; whoever is down without probes comes back."""
    rng = random.Random(seed)
    checks = Checks(
        active=rng.choice([None, ActiveCheck()]),
        passive=rng.choice([None, PASSIVE]),
        ejection=rng.choice([None, Ejection(failures=2, time_s=5, max_percent=50)]),
        recover_after_s=7.0,
    )
    built = Scene(UpstreamHealth(checks))
    built.health.keep([A, B, C, D])
    known = dict.fromkeys((A, B, C, D), (Status.HEALTHY, True))

    for _ in range(300):
        node = rng.choice([A, B, C, D])
        finding = rng.choices([OK, REFUSED, SLOW, BROKEN, ODD], [6, 3, 1, 1, 1])[0]
        act = rng.randrange(3)
        if act == 0:
            changes = [built.probe(finding, node=node)]
        elif act == 1:
            changes = [built.session(finding, node=node)]
        else:
            changes = [*built.later(rng.random() * 3)]
        for change in filter(None, changes):
            assert (change.before, change.was_up) == known[change.node], f"seed {seed}"
            known[change.node] = change.now, change.is_up
        states = {place: (each.status, each.is_up) for place, each in built.health.nodes.items()}
        assert states == known, f"seed {seed}"
        assert sum(each.is_ejected for each in built.health.nodes.values()) <= 2, f"seed {seed}"

    if checks.active is None:
        while built.health.due_at < math.inf:
            built.later(built.health.due_at - built.now)
        assert all(each.is_up for each in built.health.nodes.values()), f"seed {seed}"


def test_a_node_is_spotless_until_it_fails_and_again_when_that_is_forgotten() -> None:
    """While it is, a session that is connected to it changes nothing, and need not be told of."""
    told = scene(passive=Thresholds(successes=1, tcp_failures=3, timeouts=3), ejection=Ejection(failures=9))
    node = told.health.nodes[A]
    assert node.is_spotless

    told.session(REFUSED)
    assert node.is_up
    assert not node.is_spotless

    told.session(OK)
    assert node.is_spotless
