"""The life of a session over a fake pump: every way it can end, and that nothing is left behind."""

from __future__ import annotations

import ipaddress
import random
import ssl
from collections.abc import Callable

import attrs
import pytest
import trio
import trio.testing

from streamgw.core.errors import Reason
from streamgw.core.model import Address, ClientCertificate, Listener, Outcome, Pacing, Timeouts, UpstreamTLS
from streamgw.core.snapshot import Snapshot
from streamgw.core.wire.proxy_protocol import build_v1, build_v2
from streamgw.dataplane.dialer import Dialer
from streamgw.dataplane.pool import UpstreamPool
from streamgw.dataplane.pump import Ending
from streamgw.dataplane.session import Policy, Session, Sessions
from tests.support.fake_pump import Dialled, FakeEnd, FakePump
from tests.support.scenes import FakeNames, listener, route, snapshot, sync, upstream

PEER = Address("127.0.0.1", 50000)
HERE = Address("127.0.0.1", 9100)
TRUSTING = Policy(trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),))
MYSQL = upstream("10.0.0.1:3306")


@attrs.define
class Scene:
    """A gateway without sockets: one snapshot, one pump, and what was told."""

    current: Snapshot
    pump: FakePump = attrs.Factory(FakePump)
    policy: Policy = Policy()
    outcomes: list[Outcome] = attrs.Factory(list)
    bugs: list[Exception] = attrs.Factory(list)
    sessions: Sessions = attrs.field(init=False)
    pool: UpstreamPool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = UpstreamPool(FakeNames(), rng=random.Random(1))
        sync(self.pool, *self.current.upstreams.values())
        self.sessions = Sessions(
            pump=self.pump,
            dialer=Dialer(self.pump, self.pool),
            get_snapshot=lambda: self.current,
            on_outcome=self.outcomes.append,
            on_bug=lambda _, error: self.bugs.append(error),
            wall_clock=lambda: 1_700_000_000.0,
            read_certificate=lambda der: ClientCertificate(der.decode(), (), "f1", "5e"),
            id_prefix="t-",
            policy=self.policy,
        )

    async def play(self, client: FakeEnd | None = None, at: Listener | None = None) -> Outcome:
        await self.sessions.run(self.arrive(client or FakeEnd(), at))
        assert not self.sessions.live
        assert not any(self.sessions.live_by_listener.values())
        return self.outcomes[-1]

    def arrive(self, client: FakeEnd, at: Listener | None = None) -> Session:
        return self.sessions.accept(at or listener(), client, PEER, HERE)


def scene(*nodes: str, policy: Policy = Policy(), **script: object) -> Scene:
    """A route to MYSQL; the nodes named answer as the script says, the others refuse."""
    pump = FakePump({name: Dialled(**script) for name in nodes})
    return Scene(snapshot(route("mysql", MYSQL, name="db")), pump, policy)


async def test_a_session_that_ends_well(autojump_clock: trio.testing.MockClock) -> None:
    play = scene("10.0.0.1:3306", takes_s=0.5, moves=(10, 20))
    client = FakeEnd()

    outcome = await play.play(client)

    assert outcome.reason == "closed"
    assert outcome.fault == "none"
    assert outcome.phase == "relay"
    assert (outcome.bytes_up, outcome.bytes_down) == (10, 20)
    assert (outcome.duration_s, outcome.connect_s) == (0.5, 0.5)
    assert (outcome.route_id, outcome.route_name, outcome.upstream) == ("mysql", "db", "upstreams/1")
    assert str(outcome.node) == "10.0.0.1:3306"
    assert outcome.session_id == "t-1"
    assert outcome.revision == "r1"
    assert client.closed == "fin"


async def test_nothing_is_read_from_a_client_of_a_plain_listener(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A MySQL client waits for the greeting: whoever reads first would wait for ever."""

    class Blind(FakePump):
        async def peek(self, end: FakeEnd, at_least: int, *, deadline: float) -> bytes:
            raise AssertionError("a plain listener must not look at the client's bytes")

    play = Scene(snapshot(route("mysql", MYSQL)), Blind({"10.0.0.1:3306": Dialled()}))

    assert (await play.play()).reason == "closed"


async def test_no_route_closes_the_client_politely_and_dials_nobody() -> None:
    play = Scene(snapshot(route("other", MYSQL, port=1)))
    client = FakeEnd()

    outcome = await play.play(client)

    assert (outcome.reason, outcome.fault, outcome.phase) == ("no_route", "client", "match")
    assert "no route matches 127.0.0.1:50000 on 127.0.0.1:9100" in outcome.detail
    assert client.closed == "fin"
    assert play.pump.dialled == []


async def test_a_route_without_upstream_is_the_operators_fault() -> None:
    play = Scene(snapshot(route("empty")))

    outcome = await play.play()

    assert (outcome.reason, outcome.fault, outcome.route_id) == ("no_upstream", "operator", "empty")


async def test_an_upstream_without_nodes_says_no_node() -> None:
    play = Scene(snapshot(route("1", upstream())))

    assert (await play.play()).reason == "no_node"


async def test_an_unreachable_upstream_tells_every_attempt(autojump_clock: trio.testing.MockClock) -> None:
    play = Scene(snapshot(route("1", upstream("10.0.0.1:1", "10.0.0.2:1"))))
    client = FakeEnd()

    outcome = await play.play(client)

    assert (outcome.reason, outcome.fault, outcome.phase) == ("connect_failed", "upstream", "connect")
    assert len(outcome.attempts) == 2
    assert outcome.connect_s is None
    assert client.closed == "fin"


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_reset_names_the_side(autojump_clock: trio.testing.MockClock, side: str) -> None:
    outcome = await scene("10.0.0.1:3306", ending=Ending(Reason.RESET, side)).play()

    assert (outcome.reason, outcome.side, outcome.fault) == ("reset", side, side)


async def test_idle_timeout_is_the_upstreams(autojump_clock: trio.testing.MockClock) -> None:
    to = upstream("10.0.0.1:1", timeouts=Timeouts(idle_s=60))
    play = Scene(snapshot(route("1", to)), FakePump({"10.0.0.1:1": Dialled(ending=None)}))

    outcome = await play.play()

    assert (outcome.reason, outcome.fault, outcome.duration_s) == ("idle_timeout", "none", 60)


async def test_a_session_may_not_last_longer_than_its_maximum(autojump_clock: trio.testing.MockClock) -> None:
    outcome = await scene("10.0.0.1:3306", ending=None, policy=Policy(max_duration_s=30)).play()

    assert (outcome.reason, outcome.duration_s) == ("max_duration", 30)


async def test_running_out_of_descriptors_resets_the_client() -> None:
    play, client = scene("10.0.0.1:3306", exhausted=True), FakeEnd()

    outcome = await play.play(client)

    assert (outcome.reason, outcome.fault) == ("exhausted", "gateway")
    assert client.closed == "reset"


async def test_a_bug_costs_one_session_and_is_told() -> None:
    play, client = scene("10.0.0.1:3306"), FakeEnd()
    play.pump.before_relay = explode

    outcome = await play.play(client)

    assert (outcome.reason, outcome.fault) == ("bug", "gateway")
    assert outcome.detail == "ZeroDivisionError: division by zero"
    assert isinstance(play.bugs[0], ZeroDivisionError)
    assert client.closed == "reset"


def explode(*_: object, **__: object) -> None:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize("step", ["on_left", "on_outcome"])
async def test_whoever_breaks_on_hearing_of_an_end_costs_no_other_session(
    autojump_clock: trio.testing.MockClock, step: str
) -> None:
    """Users noticed that one session's end reset the sessions of every listener."""
    play = scene("10.0.0.1:3306")
    well = getattr(play.sessions, step)
    setattr(play.sessions, step, explode)

    await play.sessions.run(play.arrive(FakeEnd()))

    assert [type(bug) for bug in play.bugs] == [ZeroDivisionError]
    assert len(play.outcomes) == (step != "on_outcome")
    assert not play.sessions.live
    assert play.sessions.totals.by_reason == {"closed": 1}
    setattr(play.sessions, step, well)
    assert (await play.play()).reason == "closed"


async def test_a_socket_that_cannot_be_closed_keeps_no_session_listed() -> None:
    class Stuck(FakePump):
        close = explode

    play = Scene(snapshot(route("other", MYSQL, port=1)), Stuck())

    outcome = await play.play()

    assert outcome.reason == "no_route"
    assert [type(bug) for bug in play.bugs] == [ZeroDivisionError]


async def test_kill_ends_one_session_with_its_reason(autojump_clock: trio.testing.MockClock) -> None:
    play = scene("10.0.0.1:3306", ending=None)
    session = play.arrive(FakeEnd())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, session)
        await trio.testing.wait_all_tasks_blocked()
        assert play.sessions.kill(session.id)
        assert not play.sessions.kill("nobody")

    assert play.outcomes[0].reason == "killed"


async def test_kill_ends_one_that_waits_for_a_tls_node_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    to = upstream("10.0.0.1:1", tls=UpstreamTLS(ssl.create_default_context()))
    play = Scene(snapshot(route("1", to)), FakePump({"10.0.0.1:1": Dialled(takes_s=30)}))
    session = play.arrive(FakeEnd())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, session)
        await trio.sleep(1)
        assert play.sessions.kill(session.id)

    (outcome,), (dialled,) = play.outcomes, play.pump.dialled
    assert (outcome.reason, outcome.duration_s, dialled.closed) == ("killed", 1, "reset")


async def test_kill_ends_one_that_waits_for_room_at_once_and_the_next_in_line_is_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Users noticed that it was listed on, and that the log called its upstream full."""
    to = upstream("10.0.0.1:1", pacing=Pacing(max_conns=1, queue_timeout_s=60, queue_size=9))
    play = Scene(snapshot(route("1", to)), FakePump({"10.0.0.1:1": Dialled(ending=None)}))
    first, waits, behind = (play.arrive(FakeEnd()) for _ in range(3))

    async with trio.open_nursery() as nursery:
        for session in (first, waits, behind):
            nursery.start_soon(play.sessions.run, session)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        assert play.sessions.kill(waits.id)
        await trio.testing.wait_all_tasks_blocked()
        assert list(play.sessions.live) == [first.id, behind.id]
        assert play.sessions.kill(first.id)
        await trio.testing.wait_all_tasks_blocked()
        assert behind.meter.connected_at == 1
        assert play.sessions.kill(behind.id)

    assert [(outcome.session_id, outcome.reason, outcome.duration_s) for outcome in play.outcomes] == [
        (session.id, "killed", 1) for session in (waits, first, behind)
    ]
    assert play.outcomes[0].node is None
    assert len(play.pump.dialled) == 2


class SilentNames(FakeNames):
    """A resolver that nobody answers."""

    async def first(self, name: str) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("node", ["10.0.0.1:1", "never.example:1"])
async def test_kill_ends_one_that_waits_for_a_node_at_once(
    autojump_clock: trio.testing.MockClock, node: str
) -> None:
    """It refuses, and may be back; or nobody knows yet where it is."""
    play = Scene(snapshot(route("1", upstream(node, pacing=Pacing(wait_for_node_s=600)))))
    play.pool._names = SilentNames()
    session = play.arrive(FakeEnd())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, session)
        await trio.sleep(1)
        assert play.sessions.kill(session.id)

    (outcome,) = play.outcomes
    assert (outcome.reason, outcome.fault, outcome.duration_s) == ("killed", "none", 1)


async def test_one_that_is_killed_just_as_its_node_refuses_waits_for_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = Scene(snapshot(route("1", upstream("10.0.0.1:1", pacing=Pacing(wait_for_node_s=600)))))
    session = play.arrive(FakeEnd())
    play.pool.on_failed = lambda *_: play.sessions.kill(session.id)

    await play.sessions.run(session)

    (outcome,) = play.outcomes
    assert (outcome.reason, outcome.duration_s, len(outcome.attempts)) == ("killed", 0, 1)


@pytest.mark.parametrize(
    ("key", "host", "ends"),
    [
        ("upstreams/1", "10.0.0.1", True),
        ("upstreams/2", "10.0.0.1", False),
        ("upstreams/1", "10.0.0.2", False),
    ],
)
async def test_sessions_of_a_node_that_is_left_end_and_no_others(
    autojump_clock: trio.testing.MockClock, key: str, host: str, ends: bool
) -> None:
    play = scene("10.0.0.1:3306", ending=None)
    session, connecting = play.arrive(FakeEnd()), play.arrive(FakeEnd())

    async with trio.open_nursery() as nursery:
        for each in (session, connecting):
            nursery.start_soon(play.sessions.run, each)
        await trio.testing.wait_all_tasks_blocked()
        session.meter.connected_at, connecting.meter.connected_at = trio.current_time(), None
        play.sessions.leave_node(key, Address(host, 3306))
        await trio.testing.wait_all_tasks_blocked()
        left = [(outcome.session_id, outcome.reason, outcome.fault) for outcome in play.outcomes]
        assert left == ([(session.id, "node_down", "upstream")] if ends else [])
        for each in tuple(play.sessions.live):
            play.sessions.kill(each)


# ── The PROXY header ─────────────────────────────────────────────────────────────────────────────

BEHIND_PROXY = listener(proxy_protocol="required")
CLIENT = Address("198.51.100.7", 56324)


@pytest.mark.parametrize("build", [build_v1, build_v2])
async def test_a_trusted_peers_header_becomes_the_client(
    autojump_clock: trio.testing.MockClock, build: Callable[[Address, Address], bytes]
) -> None:
    play = scene("10.0.0.1:3306", policy=TRUSTING)
    client = FakeEnd(received=build(CLIENT, HERE) + b"hello")

    outcome = await play.play(client, BEHIND_PROXY)

    assert outcome.facts.client == CLIENT
    assert outcome.peer == outcome.facts.peer == PEER
    assert client.received == b"hello", "exactly the header is consumed"


async def test_a_strangers_header_is_thrown_away(autojump_clock: trio.testing.MockClock) -> None:
    play = scene("10.0.0.1:3306")
    client = FakeEnd(received=build_v1(CLIENT, HERE) + b"hello")

    outcome = await play.play(client, BEHIND_PROXY)

    assert outcome.facts.client == PEER
    assert client.received == b"hello"


async def test_a_header_may_come_in_pieces(autojump_clock: trio.testing.MockClock) -> None:
    header = build_v2(CLIENT, HERE)
    pieces = [(0.1 * n, header[n : n + 1]) for n in range(len(header))]
    play = scene("10.0.0.1:3306", policy=TRUSTING)

    outcome = await play.play(FakeEnd(says_later=pieces), BEHIND_PROXY)

    assert outcome.facts.client == CLIENT


async def test_bytes_that_are_no_header_end_the_session() -> None:
    play, client = scene("10.0.0.1:3306"), FakeEnd(received=b"GET / HTTP/1.1\r\n\r\n")

    outcome = await play.play(client, BEHIND_PROXY)

    assert (outcome.reason, outcome.fault, outcome.phase) == ("bad_preface", "client", "preread")
    assert play.pump.dialled == []


async def test_a_silent_client_owes_its_header(autojump_clock: trio.testing.MockClock) -> None:
    outcome = await scene("10.0.0.1:3306").play(FakeEnd(), BEHIND_PROXY)

    assert (outcome.reason, outcome.duration_s) == ("preread_timeout", 3)
    assert outcome.detail == "no whole PROXY header within 3 s"


async def test_a_client_that_leaves_before_its_header_is_told_apart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outcome = await scene("10.0.0.1:3306").play(FakeEnd(received=b"PROX", eof=True), BEHIND_PROXY)

    assert outcome.reason == "preread_timeout"
    assert outcome.detail == "the client closed after 4 bytes of a PROXY header"


async def test_an_endless_header_meets_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    head = build_v2(CLIENT, HERE)[:14] + (65_000).to_bytes(2, "big")

    outcome = await scene("10.0.0.1:3306").play(FakeEnd(received=head), BEHIND_PROXY)

    assert outcome.reason == "preread_limit"


async def test_a_client_that_resets_in_its_header_is_a_reset() -> None:
    outcome = await scene("10.0.0.1:3306").play(FakeEnd(resets=True), BEHIND_PROXY)

    assert (outcome.reason, outcome.fault) == ("reset", "client")


@pytest.mark.parametrize("says", [b"", b"hello", b"PRO"])
async def test_an_optional_header_may_be_missing(autojump_clock: trio.testing.MockClock, says: bytes) -> None:
    client = FakeEnd(received=says)

    outcome = await scene("10.0.0.1:3306").play(client, listener(proxy_protocol="optional"))

    assert outcome.reason == "closed"
    assert client.received == says


async def test_the_upstream_is_told_about_the_client(autojump_clock: trio.testing.MockClock) -> None:
    play = scene("10.0.0.1:3306")

    await play.play(at=listener(proxy_protocol_to_upstream="v1"))

    assert play.pump.dialled[0].preface == build_v1(PEER, HERE)


@pytest.mark.parametrize(("own", "sent"), [("v2", build_v2(PEER, HERE)), ("off", b"")])
async def test_an_upstreams_own_setting_goes_before_the_listeners(
    autojump_clock: trio.testing.MockClock, own: str, sent: bytes
) -> None:
    to = upstream("10.0.0.1:1", proxy_protocol=own)
    play = Scene(snapshot(route("1", to)), FakePump({"10.0.0.1:1": Dialled()}))

    await play.play(at=listener(proxy_protocol_to_upstream="v1"))

    assert play.pump.dialled[0].preface == sent


async def test_a_peer_on_a_unix_socket_is_never_trusted_by_address(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = scene("10.0.0.1:3306", policy=TRUSTING)
    client = FakeEnd(received=build_v1(CLIENT, HERE))
    session = play.sessions.accept(BEHIND_PROXY, client, Address("unix:", 0), Address("unix:", 0))

    await play.sessions.run(session)

    assert play.outcomes[0].facts.client.host == "unix:"


# ── Reload and cancellation ──────────────────────────────────────────────────────────────────────


async def test_a_session_keeps_the_snapshot_it_was_accepted_under(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = scene("10.0.0.1:3306")
    session = play.arrive(FakeEnd())

    play.current = snapshot(revision="r2")
    sync(play.pool)
    await play.sessions.run(session)

    assert (play.outcomes[0].reason, play.outcomes[0].revision) == ("closed", "r1")


@pytest.mark.parametrize("moment", ["peek", "connect", "relay"])
async def test_cancelled_at_any_await_nothing_is_left(
    autojump_clock: trio.testing.MockClock, moment: str
) -> None:
    play = scene("10.0.0.1:3306", ending=None, takes_s=5 if moment == "connect" else 0)
    at = listener(proxy_protocol="required") if moment == "peek" else listener()
    client = FakeEnd()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, play.arrive(client, at))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert play.outcomes[0].reason == "drain"
    assert client.closed == "reset"
    assert all(end.closed == "reset" for end in play.pump.dialled)
    assert not play.sessions.live


async def test_totals_add_up(autojump_clock: trio.testing.MockClock) -> None:
    play = scene("10.0.0.1:3306", moves=(3, 4))

    for _ in range(3):
        await play.play()

    totals = play.sessions.totals
    assert (totals.sessions, totals.bytes_up, totals.bytes_down) == (3, 9, 12)
    assert totals.by_reason == {"closed": 3}
    assert totals.accepted == {"tcp 127.0.0.1:9100": 3}
