"""Handshakes on the loop, a step at a time; on sockets, with every way to end, in tests/conformance/test_pump_tls.py."""

from __future__ import annotations

import contextlib
import errno
import ssl

import attrs
import pytest

from streamgw.core.errors import PeerReset, TLSFailed
from streamgw.dataplane.pump import steps as module
from streamgw.dataplane.pump.end import Socket
from streamgw.dataplane.pump.steps import RECEIVE_BYTES, Steps
from streamgw.dataplane.pump.tls import Shaking, TLSLayer
from tests.support.certificates import CA_PEM
from tests.support.hello import hello
from tests.support.scripted_socket import ScriptedSocket
from tests.support.tls_talker import CLIENT, NAME, SERVER

GONE = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


class Client:
    """OpenSSL's, between memory buffers."""

    def __init__(self, context: ssl.SSLContext = CLIENT) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)

    def answer(self, words: bytes | bytearray = b"") -> bytes:
        """What it says to these words; at first its hello."""
        self._incoming.write(words)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def seal(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()


@attrs.define
class Scene:
    """Steps, and who was woken by them."""

    said: list[bytes] = attrs.Factory(list)
    woken: list[Socket] = attrs.Factory(list)
    steps: Steps = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.steps = Steps(lambda _end, words: self.said.append(words), self.woken.append)

    def begin(self, sock: ScriptedSocket) -> tuple[Socket, Shaking]:
        """A client has connected, and its hello is there."""
        end = Socket(sock, is_client=True)
        shaking = end.shaking = Shaking(TLSLayer(SERVER, server_side=True))
        self.hear(end)
        return end, shaking

    def hear(self, end: Socket) -> None:
        """An edge."""
        end.ready = True
        self.steps.hear(end)

    def turn(self) -> None:
        while self.steps.due:
            self.steps.turn()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_step_for_each_message_and_the_task_is_woken_at_the_end(scene: Scene) -> None:
    client = Client()
    sock = ScriptedSocket(reads=[client.answer()])
    end, shaking = scene.begin(sock)

    scene.turn()

    assert not shaking.over
    assert not end.ready, "a short read has drained the socket"

    sock.reads.append(client.answer(sock.sent))
    scene.hear(end)
    scene.turn()

    assert shaking.over
    assert scene.woken == [end]
    assert end.tls is shaking.layer
    assert end.shaking is None
    assert not end.ready, "nothing came behind the handshake"


def test_what_came_with_the_end_of_the_handshake_is_there_to_be_read(scene: Scene) -> None:
    client = Client()
    sock = ScriptedSocket(reads=[client.answer()])
    end, _ = scene.begin(sock)
    scene.turn()

    sock.reads.append(client.answer(sock.sent) + client.seal(b"early"))
    scene.hear(end)
    scene.turn()

    assert end.ready


def test_an_edge_without_bytes_is_no_step(scene: Scene) -> None:
    end, shaking = scene.begin(ScriptedSocket())
    scene.turn()
    assert not end.ready
    assert not shaking.over
    scene.steps.hear(end)  # room to write: of no interest
    assert not scene.steps.due


def test_an_end_is_due_once_however_many_edges_it_has(scene: Scene) -> None:
    end, _ = scene.begin(ScriptedSocket())
    scene.hear(end)
    assert len(scene.steps.due) == 1


def test_an_end_that_does_not_shake_hands_has_no_turn(scene: Scene) -> None:
    scene.hear(Socket(ScriptedSocket(), is_client=True))
    assert not scene.steps.due


def test_a_hello_longer_than_a_read_takes_another_step_at_once(scene: Scene) -> None:
    sent = hello(NAME, message_bytes=RECEIVE_BYTES + 2_000)
    sock = ScriptedSocket(reads=[sent[:RECEIVE_BYTES], sent[RECEIVE_BYTES:]])
    _end, shaking = scene.begin(sock)
    scene.turn()
    assert sock.reads == []
    assert isinstance(shaking.failure, TLSFailed), (
        "all of it was read: it offers no cipher that anybody knows"
    )


def test_what_the_socket_has_no_room_for_is_sent_before_anything_is_read(scene: Scene) -> None:
    client = Client()
    sock = ScriptedSocket(reads=[client.answer()], takes=[100, 0])
    end, shaking = scene.begin(sock)
    scene.turn()
    assert len(sock.sent) == 100

    scene.steps.hear(end)
    scene.turn()
    assert shaking.unsent

    scene.steps.hear(end)
    scene.turn()
    assert not shaking.unsent
    assert sock.log.count("recv") == 2, "one step, and a look for more after the last of its words"
    assert client.answer(sock.sent)


def test_the_task_sleeps_until_the_last_words_are_sent(scene: Scene) -> None:
    before_1_3 = ssl.create_default_context(cadata=CA_PEM)
    before_1_3.maximum_version = ssl.TLSVersion.TLSv1_2
    client = Client(before_1_3)
    sock = ScriptedSocket(reads=[client.answer()])
    end, shaking = scene.begin(sock)
    scene.turn()
    sock.reads.append(client.answer(sock.sent))
    sock.takes.append(0)

    scene.hear(end)
    scene.turn()

    assert shaking.agreed
    assert not shaking.over

    scene.steps.hear(end)
    scene.turn()

    assert scene.woken == [end]


def test_an_alert_is_said_and_the_task_told(scene: Scene) -> None:
    server_hello = b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"
    end, shaking = scene.begin(ScriptedSocket(reads=[server_hello]))
    scene.turn()
    assert isinstance(shaking.failure, TLSFailed)
    assert scene.said[0][:1] == b"\x15", "an alert"
    assert scene.woken == [end]
    assert end.tls is None


@pytest.mark.parametrize(
    ("pending_error", "failure"),
    [(0, TLSFailed), (errno.ECONNRESET, PeerReset)],
    ids=["FIN", "FIN, then RST"],
)
def test_an_end_in_the_middle_is_told(scene: Scene, pending_error: int, failure: type[Exception]) -> None:
    sock = ScriptedSocket(reads=[Client().answer()], pending_error=pending_error)
    end, shaking = scene.begin(sock)
    scene.turn()
    sock.reach_eof()
    end.broken = bool(pending_error)
    scene.hear(end)
    scene.turn()
    assert isinstance(shaking.failure, failure)


@pytest.mark.parametrize("failing", ["read", "write"])
def test_a_reset_is_the_peers(scene: Scene, failing: str) -> None:
    reads: list[bytes | OSError] = [GONE] if failing == "read" else [Client().answer()]
    _end, shaking = scene.begin(ScriptedSocket(reads=reads, takes=[GONE]))
    scene.turn()
    assert isinstance(shaking.failure, PeerReset)
    assert str(shaking.failure) == "connection reset by peer"


def test_a_bug_is_the_tasks_to_raise(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = ZeroDivisionError()

    def fail(*_: object) -> None:
        raise bug

    monkeypatch.setattr(module, "receive", fail)
    end, shaking = scene.begin(ScriptedSocket())
    scene.turn()
    assert shaking.failure is bug
    assert scene.woken == [end]


def test_nobody_touches_an_end_that_was_closed_or_left_meanwhile(scene: Scene) -> None:
    closed, _ = scene.begin(ScriptedSocket())
    left, _ = scene.begin(ScriptedSocket())
    closed.fd = -1
    left.shaking = None
    scene.turn()
    assert scene.woken == []
    assert not scene.steps.due


def test_a_turn_ends_however_many_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 0.0)
    for _ in range(5):
        scene.begin(ScriptedSocket(reads=[Client().answer()]))
    scene.steps.turn()
    assert len(scene.steps.due) == 4
