"""One probe of one node, over sockets of its own: connect, shake hands, ask, judge."""

from __future__ import annotations

import errno
import socket
import ssl

import attrs
import trio

from streamgw.core.errors import Exhausted, Fault, SessionError
from streamgw.core.model import Address
from streamgw.core.probe import MAX_ANSWER_BYTES, Finding, Probe, Result, Step, why_unanswered
from streamgw.dataplane.pump.dial import Sockaddr, connect_failure, meets_itself, sockaddr_for
from streamgw.dataplane.pump.end import EXHAUSTED_ERRNOS, words_for


@attrs.frozen
class Target:
    """Where a probe goes."""

    node: Address
    name: str
    """The node's host as it is written: for TLS and HTTP. May be an address."""


class _Unanswered(Exception):
    """A node said something else, or went away."""


async def run_probe(probe: Probe, target: Target, context: ssl.SSLContext | None) -> Finding:
    """Ask a node once. Never raises for anything that a node does.

    Args:
      probe: what to ask; its port goes before the node's.
      target: whom.
      context: for tls and https, client side.

    Cancellation:
      The socket is closed.
    """
    where = Address(target.node.host, probe.port or target.node.port)
    # An answer that came while the deadline passed is an answer.
    finding: Finding | None = None
    doing = "answer"
    try:
        with trio.move_on_after(probe.timeout_s):
            if probe.kind == "udp":
                finding = await _over_udp(probe, where)
            else:
                doing = "connect"
                async with await _connect(where) as stream:
                    doing = "answer"
                    finding = await _over_tcp(probe, target, stream, context)
    except _Unanswered as error:
        finding = Finding(Result.TCP_FAILURE, str(error))
    except SessionError as error:
        # What this machine lacks is no reason to call a node sick.
        result = Result.TCP_FAILURE if error.fault is Fault.UPSTREAM else Result.NEITHER
        finding = Finding(result, str(error))
    except (OSError, trio.BrokenResourceError) as error:
        finding = _finding_of(error)
    except ValueError as error:  # a name that TLS cannot send
        finding = Finding(Result.TCP_FAILURE, str(error))
    return finding or Finding(Result.TIMEOUT, f"did not {doing} within {probe.timeout_s:g} s")


async def _connect(where: Address) -> trio.SocketStream:
    family, sockaddr = sockaddr_for(where.host, where.port)
    sock = trio.socket.socket(family)
    try:
        await _reach(sock, family, sockaddr)
    except OSError as error:
        sock.close()
        raise connect_failure(error.errno or 0, family, sockaddr) from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _reach(sock: trio.socket.SocketType, family: socket.AddressFamily, sockaddr: Sockaddr) -> None:
    await sock.connect(sockaddr)
    if meets_itself(sock, family, sockaddr):
        raise OSError(errno.ECONNREFUSED, "nobody else is there")


async def _over_tcp(
    probe: Probe, target: Target, stream: trio.SocketStream, context: ssl.SSLContext | None
) -> Finding:
    talker: trio.abc.Stream = stream
    if probe.kind in {"tls", "https"}:
        assert context is not None, "of the caller"
        secure = trio.SSLStream(
            stream, context, server_hostname=probe.host or target.name, https_compatible=True
        )
        await secure.do_handshake()
        talker = secure
    if probe.kind in {"http", "https"}:
        return await _ask_http(probe, target, talker)
    for step in probe.talk:
        await _take_step(step, talker)
    return Finding(Result.SUCCESS)


async def _ask_http(probe: Probe, target: Target, stream: trio.abc.Stream) -> Finding:
    await stream.send_all(probe.request.encode(probe.host or target.name))
    said = b""
    while (finding := probe.judge(said)) is None:
        more = await stream.receive_some(4096)
        if not more:
            raise _Unanswered(f"closed the connection: {why_unanswered(said)}")
        said += more
    return finding


async def _take_step(step: Step, stream: trio.abc.Stream) -> None:
    if step.send:
        try:
            await stream.send_all(step.send)
        except trio.BrokenResourceError:
            if step.expect is not None:
                raise
            return  # a goodbye to one who has gone
    said = b""
    while not step.is_answered(said):
        if len(said) >= MAX_ANSWER_BYTES:
            raise _Unanswered(why_unanswered(said))
        more = await stream.receive_some(4096)
        if not more:
            raise _Unanswered(f"closed the connection: {why_unanswered(said)}")
        said += more


async def _over_udp(probe: Probe, where: Address) -> Finding:
    """Each step is a datagram, and one that comes back. A port where nobody listens answers by ICMP: refused."""
    family, sockaddr = sockaddr_for(where.host, where.port)
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await _reach(sock, family, sockaddr)
        if not sock.getsockname()[1]:  # EAGAIN, which Trio takes for a connect that is under way
            raise Exhausted("no local port left to send from")
        for step in probe.talk:
            await sock.send(step.send)
            while step.expect is not None and not step.is_answered(await sock.recv(65_535)):
                pass  # a late answer to the step before, or nonsense
    return Finding(Result.SUCCESS)


def _finding_of(error: OSError | trio.BrokenResourceError) -> Finding:
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Finding(Result.TCP_FAILURE, f"certificate: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        said = (cause.reason or "the handshake failed").lower().replace("_", " ")
        return Finding(Result.TCP_FAILURE, f"TLS: {said}")
    if isinstance(cause, OSError) and cause.errno:
        result = Result.NEITHER if cause.errno in EXHAUSTED_ERRNOS else Result.TCP_FAILURE
        return Finding(result, words_for(cause.errno))
    return Finding(Result.TCP_FAILURE, "closed the connection")
