"""Nobody comes past the client-certificate rule of a name, nor past a TLS listener with something that is not TLS.

Each attempt ends with the reason that the documentation gives, and none reaches the upstream: a witness behind the
gateway keeps everybody who ever connects.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.certificates import CA_PEM, OTHER_CA, Issued, issue
from tests.support.gateway import Gateway, stream_route
from tests.support.hello import SERVER_NAME, hello, vector
from tests.support.origin import named_origin
from tests.support.ports import Ports
from tests.support.tls_clients import (
    Handwritten,
    TLSVisitor,
    Witness,
    alerts_in,
    is_refused,
    last_words,
    recut,
    s_client,
    session_of,
    ssl_object,
    trusting,
    whom,
)

pytestmark = [pytest.mark.slow, pytest.mark.servers]

OPEN, GUARDED = "open.test.com", "guarded.test.com"
TLS_1_2 = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
TLS_1_3 = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
BOTH_NAMES = issue(OPEN, GUARDED)
"""One pair for both names: what a wildcard certificate would be. Only the rule for clients differs."""
ALICE = issue("alice@test.com")
MALLORY = issue("mallory@test.com", ca=OTHER_CA)
LAST_YEAR = dt.datetime.now(dt.UTC) - dt.timedelta(days=365)
EXPIRED = issue("alice@test.com", not_before=LAST_YEAR - dt.timedelta(days=90), not_after=LAST_YEAR)
HANDSHAKE_TIMEOUT_S = 1
PREREAD_TIMEOUT_S = 1
PREREAD_LIMIT_BYTES = 16_384
UNRECOGNIZED_NAME = 112
_SLOW = 100


@attrs.frozen
class Scene:
    """A running gateway: open.test.com is for everybody, guarded.test.com for those with a certificate of our CA."""

    gateway: Gateway
    port: int
    behind_open: Witness
    behind_guarded: Witness
    directory: Path

    def ending_of(self, client: socket.socket | tuple[str, int]) -> Mapping[str, Any]:
        """The access-log line of this client."""
        host, port = client if isinstance(client, tuple) else client.getsockname()
        return self.gateway.wait_for_access_line(
            lambda line: line["client"] == f"{host}:{port}", what=f"of {host}:{port}"
        )

    def latest(self, act: Callable[[], object]) -> Mapping[str, Any]:
        """The access-log line of the one session that `act` makes."""
        self.wait_until_idle()
        before = len(self.gateway.access_lines())
        act()
        self.wait_until_idle()
        (line,) = self.gateway.access_lines()[before:]
        return line

    def wait_until_idle(self) -> None:
        """Wait until every session so far has its line in the log."""
        self.gateway.wait_for_status(
            lambda status: status["sessions"]["total"] == len(self.gateway.access_lines()),
            what="every session is over and logged",
        )


@pytest.fixture(scope="module")
def running(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("bypass")
    gateway, port = Gateway(directory / "gateway", ports), ports.take()
    limits = {
        "handshake_timeout_s": HANDSHAKE_TIMEOUT_S,
        "preread_timeout_s": PREREAD_TIMEOUT_S,
        "preread_limit_bytes": PREREAD_LIMIT_BYTES,
    }
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}], streamgw={"limits": limits})
    with Witness() as behind_open, Witness() as behind_guarded:
        gateway.write_routes(
            "routes.yaml",
            stream_route("open", behind_open.port, sni=OPEN),
            stream_route("guarded", behind_guarded.port, sni=GUARDED),
            # Whoever is neither: a route that would take them, had they come through the handshake.
            stream_route("rest", behind_guarded.port),
            ssls=[
                ssl_object(BOTH_NAMES, OPEN, id="open"),
                ssl_object(BOTH_NAMES, GUARDED, id="guarded", client={"ca": CA_PEM}),
            ],
        )
        with gateway.running():
            yield Scene(gateway, port, behind_open, behind_guarded, directory)


@pytest.fixture
def scene(running: Scene) -> Iterator[Scene]:
    running.wait_until_idle()
    running.behind_open.visitors()  # of tests before
    yield running
    uninvited = running.behind_guarded.visitors()
    running.behind_open.let_go()
    running.behind_guarded.let_go()
    running.wait_until_idle()
    assert uninvited + running.behind_guarded.visitors() == 0, "somebody came through uninvited"


# The proof that the witness sees: those who may come do.


@pytest.mark.parametrize("versions", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
def test_who_has_a_certificate_reaches_the_upstream(
    scene: Scene, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
) -> None:
    with TLSVisitor(scene.port, GUARDED, trusting(identity=ALICE, versions=versions)) as visitor:
        with scene.behind_guarded.accept() as behind:
            behind.sendall(b"welcome\n")
        assert visitor.greeting() == "welcome"


# Without the right certificate


@pytest.mark.parametrize("versions", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("identity", "why"),
    [(None, "did not return a certificate"), (MALLORY, "verify failed"), (EXPIRED, "expired")],
    ids=["none", "of another authority", "expired"],
)
def test_who_has_no_good_certificate_is_refused_in_the_handshake(
    scene: Scene, identity: Issued | None, why: str, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
) -> None:
    context = trusting(identity=identity, versions=versions)

    line = scene.latest(lambda: is_refused(scene.port, GUARDED, context))

    assert (line["reason"], line["fault"], line["phase"]) == ("tls_failed", "client", "handshake")
    assert why in line["detail"]
    assert line["sni"] == GUARDED


# With a session from elsewhere


@pytest.mark.parametrize(
    ("versions", "options"),
    [(TLS_1_2, 0), (TLS_1_2, ssl.OP_NO_TICKET), (TLS_1_3, 0)],
    ids=["1.2 by ticket", "1.2 by number", "1.3"],
)
def test_a_session_made_under_an_open_name_opens_no_guarded_one(
    scene: Scene, versions: tuple[ssl.TLSVersion, ssl.TLSVersion], options: int
) -> None:
    context = trusting(versions=versions)
    context.options |= options
    with TLSVisitor(scene.port, OPEN, context) as visitor:
        with scene.behind_open.accept() as behind:
            behind.sendall(b"tickets come with the first bytes\n")
        visitor.greeting()
        session = visitor.socket.session
    assert session is not None
    with TLSVisitor(scene.port, OPEN, context, session=session) as visitor:
        assert visitor.socket.session_reused, "the session is good where it was made"
        scene.behind_open.accept().close()

    def resume() -> None:
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            TLSVisitor(scene.port, GUARDED, context, session=session) as visitor,
        ):
            assert not visitor.socket.session_reused
            visitor.greeting()

    scene.behind_open.let_go()
    line = scene.latest(resume)

    assert (line["reason"], line["phase"], line["sni"]) == ("tls_failed", "handshake", GUARDED)


@pytest.mark.parametrize("versions", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
def test_a_session_made_before_the_rule_was_written_does_not_outlive_it(
    gateway: Gateway, ports: Ports, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
) -> None:
    port, context = ports.take(), trusting(versions=versions)
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}])

    with Witness() as witness:
        route = stream_route("1", witness.port)
        gateway.write_routes("routes.yaml", route, ssls=[ssl_object(BOTH_NAMES, GUARDED)])
        with gateway.running():
            with TLSVisitor(port, GUARDED, context) as visitor:
                with witness.accept() as behind:
                    behind.sendall(b"tickets come with the first bytes\n")
                visitor.greeting()
                session = visitor.socket.session
            before = gateway.status()["config"]["revision"]

            gateway.write_routes(
                "routes.yaml", route, ssls=[ssl_object(BOTH_NAMES, GUARDED, client={"ca": CA_PEM})]
            )
            gateway.wait_for_status(
                lambda status: status["config"]["revision"] != before, what="the rule holds"
            )

            with (
                contextlib.suppress(ssl.SSLError, ConnectionError),
                TLSVisitor(port, GUARDED, context, session=session) as visitor,
            ):
                assert not visitor.socket.session_reused
                assert visitor.greeting() == ""
            gateway.wait_for_access_line(lambda line: line["reason"] == "tls_failed", what="refused")
            assert witness.visitors() == 0


@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_openssl_cannot_carry_its_session_over_either(scene: Scene, option: str) -> None:
    session = scene.directory / f"session{option}.pem"
    with s_client(scene.directory, scene.port, option, "-sess_out", session, name=OPEN) as client:
        session_of(client)
        scene.behind_open.accept().sendall(b"hello\n")
        client.wait_for_line("hello")

    def resume() -> None:
        with s_client(scene.directory, scene.port, option, "-sess_in", session, name=GUARDED) as client:
            client.wait()

    scene.behind_open.let_go()
    line = scene.latest(resume)

    assert (line["reason"], line["sni"]) == ("tls_failed", GUARDED)


@pytest.mark.parametrize("versions", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
def test_who_comes_back_with_an_allowed_session_is_still_known_by_name(
    scene: Scene, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
) -> None:
    context = trusting(identity=ALICE, versions=versions)
    session = None

    for _ in range(2):
        with TLSVisitor(scene.port, GUARDED, context, session=session) as visitor:
            with scene.behind_guarded.accept() as behind:
                behind.sendall(b"hello\n")
            visitor.greeting()
            session = visitor.socket.session
            client = visitor.socket.getsockname()

        assert scene.ending_of(client)["client_sans"] == ["email:alice@test.com"]


@pytest.mark.parametrize("versions", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])
def test_a_session_of_an_allowed_client_is_not_good_for_others(
    scene: Scene, versions: tuple[ssl.TLSVersion, ssl.TLSVersion]
) -> None:
    """Who resumes a session has its secret, so it is the same client; but under an open name it says nothing."""
    context = trusting(identity=ALICE, versions=versions)
    with TLSVisitor(scene.port, GUARDED, context) as visitor:
        with scene.behind_guarded.accept() as behind:
            behind.sendall(b"hello\n")
        visitor.greeting()
        session = visitor.socket.session

    with TLSVisitor(scene.port, OPEN, context, session=session) as visitor:
        assert not visitor.socket.session_reused
        scene.behind_open.accept().close()


# With another name


def test_the_name_in_the_hello_decides_whatever_the_client_asks_for_later(scene: Scene) -> None:
    """What an HTTP client would put in its Host header: the route is chosen, and goes where everybody may go."""
    with TLSVisitor(scene.port, OPEN) as visitor:
        visitor.socket.sendall(f"GET / HTTP/1.1\r\nHost: {GUARDED}\r\n\r\n".encode())
        with scene.behind_open.accept() as behind:
            assert GUARDED.encode() in behind.recv(1000)


@pytest.mark.parametrize(
    "name",
    ["x.guarded.test.com", "guarded.test.com.evil.test", "test.com", "*.test.com"],
)
def test_a_name_without_certificate_ends_before_the_handshake(scene: Scene, name: str) -> None:
    careless = trusting()
    careless.check_hostname = False

    line = scene.latest(lambda: is_refused(scene.port, name, careless))

    # `*.test.com` is no host name, so the hello itself is refused.
    expected = "bad_preface" if "*" in name else "tls_failed"
    assert (line["reason"], line["fault"]) == (expected, "client")


def test_a_hello_without_a_name_is_told_that_none_is_known(scene: Scene) -> None:
    said = b""

    def ask() -> None:
        nonlocal said
        said = last_words(scene.port, hello(None))

    line = scene.latest(ask)

    assert (line["reason"], line["detail"]) == ("tls_failed", "the client sent no server name")
    assert alerts_in(said) == [UNRECOGNIZED_NAME]


@pytest.mark.parametrize("name", ["GUARDED.test.com", "guarded.test.com."])
def test_capitals_and_a_trailing_dot_are_the_same_guarded_name(scene: Scene, name: str) -> None:
    careless = trusting()
    careless.check_hostname = False

    line = scene.latest(lambda: is_refused(scene.port, name, careless))

    assert (line["reason"], line["phase"], line["sni"]) == ("tls_failed", "handshake", GUARDED)


@pytest.mark.parametrize("order", [(OPEN, GUARDED), (GUARDED, OPEN)])
def test_two_names_in_one_hello_are_refused(scene: Scene, order: tuple[str, str]) -> None:
    """Two readers could take different ones: the router the first, OpenSSL the second."""
    entries = b"".join(b"\0" + vector(2, name.encode()) for name in order)
    data = hello(None, extensions=[(SERVER_NAME, vector(2, entries))])

    line = scene.latest(lambda: last_words(scene.port, data))

    assert line["reason"] == "bad_preface"


# With renegotiation


def test_an_open_session_cannot_renegotiate(scene: Scene) -> None:
    """TLS 1.2 could change who the client is, and what was agreed upon, in the middle of a session."""
    with s_client(scene.directory, scene.port, "-tls1_2", name=OPEN) as client:
        assert session_of(client) == ("New", "TLSv1.2")
        behind = scene.behind_open.accept()
        client.tell("before\n")
        assert behind.recv(100) == b"before\n"

        client.tell("R\n")

        client.wait_for_line("no renegotiation")
        # s_client gives up without a word.
        with pytest.raises(ConnectionResetError):
            behind.recv(100)


# With a hello that is hard to read


@pytest.mark.parametrize("records", [1, 3, 40])
def test_a_hello_in_single_bytes_is_read_as_what_it_is(scene: Scene, records: int) -> None:
    with Handwritten(scene.port, OPEN) as client:
        client.send(recut(client.hello, records), piece_bytes=1)
        client.finish()
        with scene.behind_open.accept() as behind:
            behind.sendall(b"welcome\n")
        assert client.read() == b"welcome\n"


@pytest.mark.parametrize("records", [1, 3, 40])
def test_a_hello_in_single_bytes_does_not_get_past_the_guard(scene: Scene, records: int) -> None:
    with Handwritten(scene.port, GUARDED) as client:
        client.send(recut(client.hello, records), piece_bytes=1)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            client.finish()
            assert client.read() == b""

        line = scene.ending_of(client.socket)

    assert (line["reason"], line["phase"], line["sni"]) == ("tls_failed", "handshake", GUARDED)


@pytest.mark.parametrize("size", [2_000, 8_000, 16_000])
def test_a_large_hello_is_read_whole(scene: Scene, size: int) -> None:
    """Post-quantum key shares make hellos of 2 kB; at 16 kB the largest record is nearly full."""
    with Handwritten(scene.port, OPEN, _talkative(size)) as client:
        assert len(client.hello) > size
        client.send(client.hello)
        client.finish()
        with scene.behind_open.accept() as behind:
            behind.sendall(b"welcome\n")
        assert client.read() == b"welcome\n"


def test_the_limit_may_be_raised_for_hellos_of_several_records(gateway: Gateway, ports: Ports) -> None:
    port = ports.take()
    limits = {"preread_limit_bytes": 65_536}
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}], streamgw={"limits": limits})

    with Witness() as witness:
        gateway.write_routes(
            "routes.yaml", stream_route("1", witness.port), ssls=[ssl_object(BOTH_NAMES, OPEN)]
        )
        with gateway.running(), Handwritten(port, OPEN, _talkative(40_000)) as client:
            assert len(client.hello) > 40_000
            client.send(client.hello)
            client.finish()
            with witness.accept() as behind:
                behind.sendall(b"welcome\n")
            assert client.read() == b"welcome\n"


def test_a_hello_beyond_the_limit_is_not_waited_for(scene: Scene) -> None:
    data = hello(GUARDED, message_bytes=PREREAD_LIMIT_BYTES + 1)

    line = scene.latest(lambda: last_words(scene.port, data))

    assert (line["reason"], line["fault"]) == ("preread_limit", "client")


def _talkative(size: int) -> ssl.SSLContext:
    """A client that offers so many protocols that its hello has at least so many bytes."""
    context = trusting()
    context.set_alpn_protocols([f"{number:0200}" for number in range(size // 201 + 1)])
    return context


# With what is no TLS


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: guarded.test.com\r\n\r\n",
        b"\x00" * 100,
        bytes(range(255, -1, -1)),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x2e\x01\x03\x01",  # an SSLv2 hello
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x15\x03\x01\x00\x02\x02\x00",  # an alert
        b"\x17\x03\x03\x00\x05hello",  # data before any handshake
        hello(GUARDED)[:20] + b"\xff" * 300,
    ],
    ids=["http", "zeros", "garbage", "ssh", "sslv2", "empty", "server-hello", "alert", "data", "spoiled"],
)
def test_what_is_no_hello_is_refused_at_once(scene: Scene, data: bytes) -> None:
    line = scene.latest(lambda: last_words(scene.port, data))

    assert (line["reason"], line["fault"], line["phase"]) == ("bad_preface", "client", "preread")
    assert line["duration_s"] < PREREAD_TIMEOUT_S


def test_a_hello_that_openssl_refuses_ends_in_the_handshake(scene: Scene) -> None:
    """Good enough to be routed, not to be spoken with: no key share, no common signature."""
    line = scene.latest(lambda: last_words(scene.port, hello(GUARDED)))

    assert (line["reason"], line["phase"]) == ("tls_failed", "handshake")


# With patience


@pytest.mark.parametrize("sent", [b"", b"\x16", hello(GUARDED)[:-1]], ids=["silence", "1 byte", "all but 1"])
def test_who_never_finishes_the_hello_is_cut_off(scene: Scene, sent: bytes) -> None:
    line = scene.latest(lambda: last_words(scene.port, sent))

    assert (line["reason"], line["fault"]) == ("preread_timeout", "client")
    assert PREREAD_TIMEOUT_S <= line["duration_s"] < PREREAD_TIMEOUT_S + 1


def test_who_goes_away_in_the_middle_of_the_hello_leaves_nothing_behind(scene: Scene) -> None:
    line = scene.latest(lambda: last_words(scene.port, hello(GUARDED)[:-1], ends=True))

    assert (line["reason"], line["fault"]) == ("preread_timeout", "client")
    assert line["duration_s"] < PREREAD_TIMEOUT_S


def test_who_never_finishes_the_handshake_is_cut_off(scene: Scene) -> None:
    with Handwritten(scene.port, OPEN) as client:
        client.send(client.hello)
        with contextlib.suppress(ConnectionResetError):
            while client.socket.recv(65_536):
                pass

        line = scene.ending_of(client.socket)

    assert (line["reason"], line["phase"], line["fault"]) == ("tls_failed", "handshake", "client")
    assert line["duration_s"] < HANDSHAKE_TIMEOUT_S + 1
    assert scene.behind_open.visitors() == 0


def test_a_flood_of_slow_hellos_starves_nobody(gateway: Gateway, ports: Ports, tmp_path: Path) -> None:
    port, alpha = ports.take(), ports.take()
    limits = {"max_handshakes": 8, "preread_timeout_s": 30, "handshake_timeout_s": 30}
    gateway.write_settings([{"addr": f"127.0.0.1:{port}", "tls": True}], streamgw={"limits": limits})
    gateway.write_routes("routes.yaml", stream_route("1", alpha), ssls=[ssl_object(BOTH_NAMES, OPEN)])

    with contextlib.ExitStack() as stack:
        stack.enter_context(named_origin(tmp_path, alpha, "alpha"))
        stack.enter_context(gateway.running())
        for number in range(_SLOW):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(hello(OPEN)[: number % 50])

        gateway.wait_for_status(
            lambda status: status["sessions"]["total"] == _SLOW and status["sessions"]["active"] == 8,
            what="as many owe their hello as may",
        )

        assert [whom(port, OPEN) for _ in range(5)] == ["alpha"] * 5

        line = gateway.wait_for_access_line(
            lambda line: line["reason"] == "tls_failed", what="one of the slow"
        )
        assert "made room" in line["detail"]
