"""A TLS client's way through a session: the hello is looked at, a route and a certificate chosen, then OpenSSL's turn."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from streamgw.core.model import Listener
from streamgw.core.wire.tls import UNRECOGNIZED_NAME
from streamgw.dataplane.session import Policy
from tests.dataplane.test_session import Scene
from tests.support.fake_pump import Dialled, FakeEnd, FakePump
from tests.support.hello import hello
from tests.support.scenes import certificate, listener, route, snapshot, upstream

TERMINATING = listener(tls="required")
MIXED = listener(tls="required", passthrough="route")
PASSING = listener(tls="required", passthrough="always")
OPTIONAL = listener(tls="optional")


def scene(policy: Policy = Policy(), **script: object) -> Scene:
    """a.test.com → 10.0.0.1, b.test.com passed through → 10.0.0.2, mtls.test.com with client certificate → 10.0.0.1."""

    def named(name: str, to: str, **settings: object) -> object:
        return route(name, upstream(to, key=to), names=(name,), **settings)

    current = snapshot(
        named("a.test.com", "10.0.0.1:1"),
        named("b.test.com", "10.0.0.2:1", tls_passthrough=True),
        named("mtls.test.com", "10.0.0.1:1"),
        named("bare.test.com", "10.0.0.1:1"),
        certificates=[
            certificate("a.test.com"),
            certificate("mtls.test.com", mtls=True),
            certificate("b.test.com"),
        ],
    )
    pump = FakePump({"10.0.0.1:1": Dialled(**script), "10.0.0.2:1": Dialled(**script)})
    return Scene(current, pump, policy)


async def test_a_name_is_terminated_under_its_certificate(autojump_clock: trio.testing.MockClock) -> None:
    play, client = scene(), FakeEnd(received=hello("A.test.com."))

    outcome = await play.play(client, TERMINATING)

    assert (outcome.reason, outcome.route_id) == ("closed", "a.test.com")
    assert client.secured_by == "context of a.test.com"
    assert (outcome.tls_version, outcome.tls_cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert outcome.facts.server_name == "a.test.com"
    assert client.received == hello("A.test.com."), "OpenSSL finds an untouched stream"


ONLY_P521 = (10, b"\x00\x02\x00\x19")


@pytest.mark.parametrize(
    ("said", "is_quick"),
    [
        pytest.param(hello("a.test.com"), True, id="both are quick"),
        pytest.param(hello("mtls.test.com"), False, id="the certificate is not"),
        pytest.param(hello("a.test.com", extensions=[ONLY_P521]), False, id="the hello is not"),
    ],
)
async def test_the_pump_is_told_of_a_handshake_that_is_quick(
    autojump_clock: trio.testing.MockClock, said: bytes, *, is_quick: bool
) -> None:
    play, client = scene(), FakeEnd(received=said, certificate=b"CN=alice")

    await play.play(client, TERMINATING)

    assert client.secured_by
    assert client.shook_quickly == is_quick


@pytest.mark.parametrize(("at", "name"), [(PASSING, "a.test.com"), (MIXED, "b.test.com")])
async def test_what_passes_through_is_not_touched(
    autojump_clock: trio.testing.MockClock, at: Listener, name: str
) -> None:
    play, client = scene(), FakeEnd(received=hello(name))

    outcome = await play.play(client, at)

    assert (outcome.reason, outcome.route_id, outcome.tls_version) == ("closed", name, "passthrough")
    assert client.secured_by is None
    assert client.received == hello(name)


async def test_on_a_mixed_listener_the_other_routes_are_terminated(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play, client = scene(), FakeEnd(received=hello("a.test.com"))

    await play.play(client, MIXED)

    assert client.secured_by == "context of a.test.com"


async def test_a_terminating_listener_ignores_the_routes_passthrough(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As in APISIX: on a dedicated listener the route's setting does not count."""
    play, client = scene(), FakeEnd(received=hello("b.test.com"))

    await play.play(client, TERMINATING)

    assert client.secured_by == "context of b.test.com"


async def test_an_unknown_name_costs_no_cryptography() -> None:
    play, client = scene(), FakeEnd(received=hello("nobody.test.com"))

    outcome = await play.play(client, TERMINATING)

    assert (outcome.reason, outcome.phase) == ("no_route", "match")
    assert client.last_words == UNRECOGNIZED_NAME
    assert client.secured_by is None
    assert play.pump.dialled == []


async def test_a_route_without_a_certificate_answers_with_an_alert() -> None:
    play, client = scene(), FakeEnd(received=hello("bare.test.com"))

    outcome = await play.play(client, TERMINATING)

    assert (outcome.reason, outcome.fault, outcome.phase) == ("tls_failed", "client", "handshake")
    assert outcome.detail == "no certificate for bare.test.com"
    assert client.last_words == UNRECOGNIZED_NAME
    assert play.pump.dialled == []


async def test_without_a_name_the_fallback_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    play, client = scene(), FakeEnd(received=hello(None))

    outcome = await play.play(client, listener(tls="required", fallback_sni="a.test.com"))

    assert (outcome.reason, outcome.route_id) == ("closed", "a.test.com")
    assert client.secured_by == "context of a.test.com"


async def test_without_a_name_and_a_fallback_there_is_no_certificate() -> None:
    play = Scene(snapshot(route("any", upstream("10.0.0.1:1"))))

    outcome = await play.play(FakeEnd(received=hello(None)), TERMINATING)

    assert (outcome.reason, outcome.detail) == ("tls_failed", "the client sent no server name")


async def test_the_client_certificate_is_known_afterwards(autojump_clock: trio.testing.MockClock) -> None:
    play = scene()

    outcome = await play.play(FakeEnd(received=hello("mtls.test.com"), certificate=b"CN=alice"), TERMINATING)

    assert outcome.facts.client_certificate is not None
    assert outcome.facts.client_certificate.subject == "CN=alice"


async def test_a_certificate_that_nobody_asked_for_is_not_believed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outcome = await scene().play(
        FakeEnd(received=hello("a.test.com"), certificate=b"CN=mallory"), TERMINATING
    )

    assert outcome.facts.client_certificate is None


async def test_a_failed_handshake_reaches_no_upstream(autojump_clock: trio.testing.MockClock) -> None:
    play = scene()
    client = FakeEnd(received=hello("mtls.test.com"), shake_fails="peer did not return a certificate")

    outcome = await play.play(client, TERMINATING)

    assert (outcome.reason, outcome.detail) == ("tls_failed", "peer did not return a certificate")
    assert play.pump.dialled == []
    assert client.closed == "fin", "an RST could overtake OpenSSL's alert"


async def test_plain_http_on_a_tls_port_is_told_apart() -> None:
    play = scene()

    outcome = await play.play(FakeEnd(received=b"GET / HTTP/1.1\r\n\r\n"), TERMINATING)

    assert (outcome.reason, outcome.phase) == ("bad_preface", "preread")
    assert play.pump.dialled == []


async def test_a_hello_may_come_byte_by_byte(autojump_clock: trio.testing.MockClock) -> None:
    whole = hello("a.test.com", record_bytes=100)
    client = FakeEnd(says_later=[(0.001 * n, whole[n : n + 1]) for n in range(len(whole))])

    outcome = await scene().play(client, TERMINATING)

    assert outcome.route_id == "a.test.com"


async def test_a_slow_hello_is_owed_until_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    outcome = await scene().play(FakeEnd(received=hello("a.test.com")[:20]), TERMINATING)

    assert (outcome.reason, outcome.duration_s) == ("preread_timeout", 3)
    assert outcome.detail == "no whole ClientHello within 3 s"


async def test_a_slow_handshake_ends_at_its_own_deadline(autojump_clock: trio.testing.MockClock) -> None:
    client = FakeEnd(received=hello("a.test.com"), shakes_s=60)

    outcome = await scene().play(client, TERMINATING)

    assert (outcome.reason, outcome.duration_s) == ("tls_failed", 10)
    assert outcome.detail == "no handshake within 10 s"


async def test_a_flood_of_slow_clients_does_not_keep_a_quick_one_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = scene(Policy(max_handshakes=2))
    silent = [FakeEnd() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for end in silent:
            nursery.start_soon(play.sessions.run, play.arrive(end, TERMINATING))
        await trio.testing.wait_all_tasks_blocked()
        began_at = trio.current_time()

        quick = play.arrive(FakeEnd(received=hello("a.test.com")), TERMINATING)
        await play.sessions.run(quick)

        assert trio.current_time() == began_at
        assert [outcome.reason for outcome in play.outcomes] == ["tls_failed", "tls_failed", "closed"]
        assert play.outcomes[0].detail == "made room for others: 2 clients owed their bytes"

    assert [outcome.reason for outcome in play.outcomes[3:]] == ["preread_timeout"]


# ── TLS and plain clients on one port ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("says", [b"PING\r\n", b""])
async def test_an_optional_listener_takes_plain_clients(
    autojump_clock: trio.testing.MockClock, says: bytes
) -> None:
    play = Scene(snapshot(route("any", upstream("10.0.0.1:1"))), FakePump({"10.0.0.1:1": Dialled()}))

    outcome = await play.play(FakeEnd(received=says), OPTIONAL)

    assert (outcome.reason, outcome.tls_version) == ("closed", "")
    assert outcome.duration_s == (0 if says else 3), "silence is an answer, at the deadline"


async def test_an_optional_listener_terminates_the_others(autojump_clock: trio.testing.MockClock) -> None:
    play, client = scene(), FakeEnd(received=hello("a.test.com"))

    await play.play(client, OPTIONAL)

    assert client.secured_by == "context of a.test.com"


async def test_alpn_chooses_among_routes(autojump_clock: trio.testing.MockClock) -> None:
    chosen = route("h2", upstream("10.0.0.1:1"), alpn=("h2",))
    other = route("other", upstream("10.0.0.1:1"))
    play = Scene(snapshot(chosen, other), FakePump({"10.0.0.1:1": Dialled()}))

    by_alpn = await play.play(FakeEnd(received=hello("x.test", alpn=["http/1.1", "h2"])), PASSING)
    without = await play.play(FakeEnd(received=hello("x.test")), PASSING)

    assert (by_alpn.route_id, without.route_id) == ("h2", "other")


@pytest.mark.parametrize("moment", ["hello", "handshake"])
async def test_cancelled_while_the_client_owes_nothing_is_left(
    autojump_clock: trio.testing.MockClock, moment: str
) -> None:
    play = scene()
    client = FakeEnd() if moment == "hello" else FakeEnd(received=hello("a.test.com"), shakes_s=5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.sessions.run, play.arrive(client, TERMINATING))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert play.outcomes[0].reason == "drain"
    assert client.closed == "reset"
    assert not play.sessions._owing


async def test_on_an_optional_listener_a_hello_that_has_begun_is_owed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Half a ClientHello handed to a plain upstream would help nobody."""
    play = Scene(snapshot(route("any", upstream("10.0.0.1:1"))), FakePump({"10.0.0.1:1": Dialled()}))

    outcome = await play.play(FakeEnd(received=hello("a.test.com")[:9]), OPTIONAL)

    assert outcome.reason == "preread_timeout"
    assert play.pump.dialled == []
