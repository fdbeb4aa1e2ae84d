"""What plugins may do to a session over a fake pump; `tests/dataplane/test_hooks.py` has the rules of the hooks themselves."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from streamgw.core.errors import Answered, ParseError, Reason, Rejected, SessionError
from streamgw.core.hooks import Decision, Delay, Hook, Hooks, Look, UseUpstream
from streamgw.core.model import Address, Facts, Outcome
from streamgw.core.wire import NeedMore
from streamgw.core.wire.proxy_protocol import build_v1
from streamgw.dataplane.session import Policy
from tests.dataplane.test_session import CLIENT, HERE, MYSQL, PEER, TRUSTING, Scene
from tests.support.fake_pump import Dialled, FakeEnd, FakePump
from tests.support.hello import hello
from tests.support.plugins import break_when_cancelled
from tests.support.scenes import certificate, listener, route, snapshot, upstream

OTHER = upstream("10.0.0.2:3306", key="upstreams/2")


def scene(*hooks: Hooks, to: object = MYSQL, policy: Policy = Policy()) -> Scene:
    """A route with these plugins; both upstreams are there and answer."""
    nodes = {"10.0.0.1:3306": Dialled(), "10.0.0.2:3306": Dialled()}
    current = snapshot(route("mysql", to, hooks=hooks), certificates=[certificate("db.example")])
    current = attrs.evolve(current, upstreams={each.key: each for each in (MYSQL, OTHER)})
    return Scene(current, FakePump(nodes), policy)


def refuse(*, status: int = 403, reset: bool = False) -> Hook:
    def hook(_: Facts, __: float) -> Decision:
        raise Rejected("not you", status=status, reset=reset)

    return hook


@pytest.mark.parametrize("phase", ["on_accept", "on_preread"])
async def test_a_plugin_refuses_a_client(autojump_clock: trio.testing.MockClock, phase: str) -> None:
    play, client = scene(Hooks(plugin="doorman", **{phase: refuse(status=503)})), FakeEnd()

    outcome = await play.play(client)

    assert (outcome.reason, outcome.fault, outcome.phase) == ("rejected", "client", "plugins")
    assert (outcome.detail, outcome.status) == ("doorman: not you", 503)
    assert client.closed == "fin"
    assert play.pump.dialled == []


async def test_a_refusal_may_be_a_reset() -> None:
    client = FakeEnd()

    await scene(Hooks(on_accept=refuse(reset=True))).play(client)

    assert client.closed == "reset"


async def test_a_plugin_may_answer_for_an_upstream(autojump_clock: trio.testing.MockClock) -> None:
    def answer(_: Facts, __: float) -> Decision:
        raise Answered(b"hello")

    client, play = FakeEnd(), scene(Hooks(on_preread=answer))

    outcome = await play.play(client)

    assert (outcome.reason, outcome.fault, outcome.detail) == ("closed", "none", "answered by a plugin")
    assert (client.last_words, client.closed) == (b"hello", "fin")
    assert play.pump.dialled == []


async def test_an_answer_that_cannot_be_given_costs_one_session() -> None:
    """Users noticed that one client ended the gateway."""

    class Mute(FakePump):
        def say_last(self, end: FakeEnd, words: bytes) -> None:
            raise OSError("nobody can hear this")

    def answer(_: Facts, __: float) -> Decision:
        raise Answered(b"hello")

    client, play = FakeEnd(), scene(Hooks(on_preread=answer))
    play.pump = play.sessions.pump = Mute()

    outcome = await play.play(client)

    assert (outcome.reason, outcome.detail) == ("bug", "OSError: nobody can hear this")
    assert client.closed == "reset"
    assert [type(bug) for bug in play.bugs] == [OSError]


class Wordless(Exception):
    """A plugin's own, which cannot say what happened."""

    def __str__(self) -> str:
        raise ZeroDivisionError


class Reasonless(SessionError):
    """A plugin's own, which names no reason."""


@pytest.mark.parametrize(
    ("error", "bug", "detail"),
    [
        (Wordless(), Wordless, "Wordless: an exception without words"),
        (Reasonless("odd"), AttributeError, "AttributeError: 'Reasonless' object has no attribute 'reason'"),
    ],
)
async def test_an_exception_of_a_plugin_that_is_odd_itself_costs_one_session(
    error: Exception, bug: type[Exception], detail: str
) -> None:
    def hook(_: Facts, __: float) -> Decision:
        raise error

    play = scene(Hooks(on_accept=hook))

    outcome = await play.play()

    assert (outcome.reason, outcome.fault, outcome.detail) == ("bug", "gateway", detail)
    assert [type(bug) for bug in play.bugs] == [bug]


async def test_a_client_refused_by_its_address_costs_no_handshake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client = FakeEnd(received=hello("db.example"))

    outcome = await scene(Hooks(on_accept=refuse())).play(client, listener(tls="required"))

    assert outcome.reason == "rejected"
    assert client.secured_by is None


async def test_what_looks_deeper_is_asked_after_the_handshake(autojump_clock: trio.testing.MockClock) -> None:
    client = FakeEnd(received=hello("db.example"))
    play = scene(Hooks(on_preread=refuse()))

    await play.play(client, listener(tls="required"))

    assert client.secured_by == "context of db.example"


async def test_a_plugin_sends_a_session_to_another_upstream(autojump_clock: trio.testing.MockClock) -> None:
    outcome = await scene(Hooks(on_preread=lambda _, __: UseUpstream("upstreams/2"))).play()

    assert (outcome.upstream, str(outcome.node)) == ("upstreams/2", "10.0.0.2:3306")


async def test_a_route_without_upstream_may_get_one_from_a_plugin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    choosing = Hooks(on_accept=lambda _, __: UseUpstream("upstreams/2"))

    assert (await scene(choosing, to=None).play()).reason == "closed"
    assert (await scene(Hooks(), to=None).play()).reason == "no_upstream"


async def test_an_upstream_that_was_never_declared_is_a_bug() -> None:
    play = scene(Hooks(on_accept=lambda _, __: UseUpstream("upstreams/3")))

    assert (await play.play()).reason == "bug"
    assert isinstance(play.bugs[0], KeyError)


async def test_a_plugin_that_breaks_costs_one_session(autojump_clock: trio.testing.MockClock) -> None:
    play = scene(Hooks(plugin="odd", on_accept=lambda facts, _: 1 / 0 if facts.client == PEER else None))

    assert (await play.play()).reason == "bug"
    assert play.bugs[0].__notes__ == ["in plugin odd"]

    session = play.sessions.accept(listener(), FakeEnd(), CLIENT, HERE)
    await play.sessions.run(session)
    assert play.outcomes[-1].reason == "closed"


@pytest.mark.parametrize("phase", ["on_accept", "on_preread"])
async def test_a_plugin_that_breaks_while_it_is_cancelled_does_not_spoil_the_drain(phase: str) -> None:
    """Users noticed that a gateway at its drain deadline ended as one that crashed."""
    play, client = scene(Hooks(plugin="odd", **{phase: break_when_cancelled})), FakeEnd()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.play, client)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert [outcome.reason for outcome in play.outcomes] == ["drain"]
    assert client.closed == "reset"
    assert not play.sessions.live
    assert [type(bug) for bug in play.bugs] == [ExceptionGroup]


async def test_a_plugin_that_breaks_at_the_close_changes_no_outcome(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = scene(Hooks(plugin="odd", on_close=lambda _, __: 1 / 0))

    assert (await play.play()).reason == "closed"
    assert isinstance(play.bugs[0], ZeroDivisionError)


async def test_the_close_hears_how_it_went(autojump_clock: trio.testing.MockClock) -> None:
    told: list[Outcome] = []

    outcome = await scene(Hooks(on_close=lambda _, ended: told.append(ended))).play()

    assert told == [outcome]


async def test_a_delay_comes_before_the_connect(autojump_clock: trio.testing.MockClock) -> None:
    outcome = await scene(Hooks(on_accept=lambda _, __: Delay(2))).play()

    assert (outcome.reason, outcome.duration_s, outcome.connect_s) == ("closed", 2, 0)


@pytest.mark.parametrize("says", [{"eof": True}, {"received": b"x" * 70_000}])
async def test_a_client_that_says_all_it_has_still_waits(
    autojump_clock: trio.testing.MockClock, says: dict[str, object]
) -> None:
    outcome = await scene(Hooks(on_accept=lambda _, __: Delay(2))).play(FakeEnd(**says))

    assert (outcome.reason, outcome.duration_s) == ("closed", 2)


async def test_kill_ends_one_that_has_said_all_and_waits_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = scene(Hooks(on_accept=lambda _, __: Delay(60)))
    session = play.arrive(FakeEnd(eof=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, session)
        await trio.sleep(1)
        assert play.sessions.kill(session.id)

    (outcome,) = play.outcomes
    assert (outcome.reason, outcome.duration_s) == ("killed", 1)
    assert play.pump.dialled == []


async def test_a_client_that_resets_is_not_kept_for_its_delay() -> None:
    outcome = await scene(Hooks(on_accept=lambda _, __: Delay(2))).play(FakeEnd(resets=True))

    assert (outcome.reason, outcome.phase) == ("reset", "plugins")


async def test_facts_of_a_plugin_are_told(autojump_clock: trio.testing.MockClock) -> None:
    named = Hooks(on_preread=lambda facts, _: attrs.evolve(facts, mqtt_client_id="sensor-1"))

    assert (await scene(named).play()).facts.mqtt_client_id == "sensor-1"


async def test_cancelled_in_a_hook_nothing_is_left(autojump_clock: trio.testing.MockClock) -> None:
    closed: list[Facts] = []
    entered = Hooks(on_accept=lambda _, __: None, on_close=lambda facts, _: closed.append(facts))

    async def hang(_: Facts, __: float) -> Decision:
        await trio.sleep_forever()

    play, client = scene(entered, Hooks(on_accept=hang)), FakeEnd()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, play.arrive(client))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert play.outcomes[0].reason == "drain"
    assert client.closed == "reset"
    assert len(closed) == 1
    assert not play.sessions.live


# ── The first bytes ──────────────────────────────────────────────────────────────────────────────


def parse_word(facts: Facts, buffer: bytes) -> Facts | NeedMore:
    word, newline, _ = buffer.partition(b"\n")
    if not word.isalpha() and word:
        raise ParseError("not a word")
    if not newline:
        return NeedMore(len(buffer) + 1)
    return attrs.evolve(facts, mqtt_client_id=word.decode())


WORD = Hooks(plugin="words", look=Look("a word", parse_word))


async def test_a_plugin_sees_the_first_bytes_and_takes_none(autojump_clock: trio.testing.MockClock) -> None:
    client = FakeEnd(says_later=[(0.1, b"hel"), (0.2, b"lo\nworld")])

    outcome = await scene(WORD).play(client)

    assert outcome.facts.mqtt_client_id == "hello"
    assert client.received == b"hello\nworld"


@pytest.mark.parametrize(
    ("client", "reason", "detail"),
    [
        (FakeEnd(received=b"1234\n"), "bad_preface", "not a word"),
        (FakeEnd(), "preread_timeout", "no whole word within 3 s"),
        (FakeEnd(received=b"hel", eof=True), "preread_timeout", "the client closed after 3 bytes of a word"),
        (FakeEnd(received=b"a" * 40_000), "preread_limit", "a word of 32769 bytes; the limit is 32768"),
        (FakeEnd(resets=True), "reset", "connection reset by peer"),
    ],
    ids=["wrong", "silent", "short", "long", "reset"],
)
async def test_a_client_owes_what_a_plugin_wants_to_see(
    autojump_clock: trio.testing.MockClock, client: FakeEnd, reason: Reason, detail: str
) -> None:
    outcome = await scene(WORD).play(client)

    assert (outcome.reason, outcome.detail) == (reason, detail)


# ── Who connected ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("policy", "client", "peer", "claimed"),
    [(TRUSTING, CLIENT, PEER, None), (Policy(), PEER, None, CLIENT)],
    ids=["trusted", "stranger"],
)
async def test_a_plugin_knows_who_says_what_about_the_client(
    autojump_clock: trio.testing.MockClock,
    policy: Policy,
    client: Address,
    peer: Address | None,
    claimed: Address | None,
) -> None:
    told: list[Facts] = []
    play = scene(Hooks(on_accept=lambda facts, _: told.append(facts)), policy=policy)

    await play.play(FakeEnd(received=build_v1(CLIENT, HERE)), listener(proxy_protocol="required"))

    assert (told[0].client, told[0].peer, told[0].claimed) == (client, peer, claimed)
