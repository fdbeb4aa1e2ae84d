"""Nobody comes past the client-certificate rule of a name: not without a certificate, nor with a session from elsewhere,
another name, or a renegotiation. What is no proper hello is in test_tls_hellos.py.

Each attempt ends with the reason that the documentation gives, and none reaches the upstream: a witness behind the
gateway keeps everybody who ever connects.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
from collections.abc import Iterator

import pytest

from tests.support.certificates import CA_PEM, OTHER_CA, Issued, issue
from tests.support.gateway import Gateway, stream_route
from tests.support.hello import SERVER_NAME, hello, vector
from tests.support.ports import Ports
from tests.support.tls_clients import (
    TLSVisitor,
    Witness,
    alerts_in,
    is_refused,
    last_words,
    s_client,
    session_of,
    ssl_object,
    trusting,
)
from tests.support.tls_guarded import (
    BOTH_NAMES,
    GUARDED,
    OPEN,
    Scene,
    guarded_gateway,
    nobody_uninvited,
)

pytestmark = [pytest.mark.slow, pytest.mark.servers]

TLS_1_2 = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
TLS_1_3 = (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
ALICE = issue("alice@test.com")
MALLORY = issue("mallory@test.com", ca=OTHER_CA)
LAST_YEAR = dt.datetime.now(dt.UTC) - dt.timedelta(days=365)
EXPIRED = issue("alice@test.com", not_before=LAST_YEAR - dt.timedelta(days=90), not_after=LAST_YEAR)
UNRECOGNIZED_NAME = 112


@pytest.fixture(scope="module")
def running(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with guarded_gateway(tmp_path_factory.mktemp("guarded"), ports) as scene:
        yield scene


@pytest.fixture
def scene(running: Scene) -> Iterator[Scene]:
    with nobody_uninvited(running):
        yield running


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
