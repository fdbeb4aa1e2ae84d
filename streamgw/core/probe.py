"""How the nodes of an upstream are checked: what they are asked, what counts as an answer, what follows from it.

Values only. `core/health.py` counts the results, `process/probes.py` asks the nodes.
"""

from __future__ import annotations

import enum
import re
from typing import Literal, TypeAlias

import attrs

ProbeKind: TypeAlias = Literal["tcp", "tls", "http", "https", "udp"]
MAX_ANSWER_BYTES = 16_384
"""Of a node, kept for each step of a talk: what is expected must stand in it."""


class Result(enum.Enum):
    """What came of one probe, or of one session's connect."""

    SUCCESS = enum.auto()
    TCP_FAILURE = enum.auto()
    """Refused, unreachable, closed early, a failed handshake, the wrong answer."""
    TIMEOUT = enum.auto()
    HTTP_FAILURE = enum.auto()
    """A status that says so."""
    NEITHER = enum.auto()
    """A status of HTTP that is in neither list, or this machine had nothing to ask with: nothing is learned."""


@attrs.frozen
class Finding:
    """The result of one probe, and why, for a person; empty after a success."""

    result: Result
    why: str = ""


@attrs.frozen
class Step:
    """One turn of a talk: say this, then wait for that. Over UDP the answer is one datagram."""

    send: bytes = b""
    expect: re.Pattern[bytes] | None = None
    """Searched for in everything that the node said since the step began."""

    def is_answered(self, said: bytes) -> bool:
        """Whether this is enough."""
        return self.expect is None or self.expect.search(said) is not None


@attrs.frozen
class Request:
    """What an HTTP server is asked."""

    method: str = "GET"
    path: str = "/"
    body: str = ""
    headers: tuple[str, ...] = ()
    """Whole lines, `Name: value`. A `Host` among them goes before the node's name."""

    def encode(self, host: str) -> bytes:
        """The request, for a server that closes after its answer."""
        names = {line.partition(":")[0].strip().lower() for line in self.headers}
        lines = [f"{self.method} {self.path} HTTP/1.1", *self.headers]
        if "host" not in names:
            lines.append(f"Host: {host}")
        if "user-agent" not in names:
            lines.append("User-Agent: streamgw health check")
        if "connection" not in names:
            lines.append("Connection: close")
        body = self.body.encode()
        if body and "content-length" not in names:
            lines.append(f"Content-Length: {len(body)}")
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


HEALTHY_STATUSES = frozenset({200, 302})
UNHEALTHY_STATUSES = frozenset({429, 404, 500, 501, 502, 503, 504, 505})


@attrs.frozen
class Probe:
    """What a node is asked each time."""

    kind: ProbeKind = "tcp"
    timeout_s: float = 1.0
    """For all of it: connect, handshake, every step."""
    host: str = ""
    """Name in TLS and HTTP. Empty: the node's, as it is written."""
    port: int = 0
    """0: the node's."""
    verify: bool = True
    """Whether the node's certificate must be one that this machine trusts, for that name."""
    request: Request = Request()
    healthy_statuses: frozenset[int] = HEALTHY_STATUSES
    unhealthy_statuses: frozenset[int] = UNHEALTHY_STATUSES
    talk: tuple[Step, ...] = ()
    """With tcp, tls and udp."""

    def judge(self, said: bytes) -> Finding | None:
        """What an HTTP server's answer means. None: its first line has not arrived."""
        line, end, _ = said.partition(b"\n")
        if not end and len(said) < MAX_ANSWER_BYTES:
            return None
        found = _STATUS_LINE.match(line)
        if found is None:
            return Finding(Result.TCP_FAILURE, f"answered {_shown(line)} instead of HTTP")
        status = int(found.group(1))
        if status in self.healthy_statuses:
            return Finding(Result.SUCCESS)
        if status in self.unhealthy_statuses:
            return Finding(Result.HTTP_FAILURE, f"answered {status}")
        return Finding(Result.NEITHER, f"answered {status}")


_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?:\s|$)")


def why_unanswered(said: bytes) -> str:
    """Of a step whose answer did not come, for a person."""
    return f"answered {_shown(said)}" if said else "answered nothing"


def _shown(said: bytes) -> str:
    return repr(said[:60])[1:]


@attrs.frozen
class Thresholds:
    """How many results in a row turn a node's state; 0: results of that kind are not counted."""

    successes: int
    tcp_failures: int
    timeouts: int
    http_failures: int = 0


@attrs.frozen
class ActiveCheck:
    """Probes that the gateway sends."""

    probe: Probe = Probe()
    thresholds: Thresholds = Thresholds(successes=2, tcp_failures=2, timeouts=3, http_failures=5)
    healthy_interval_s: float = 1.0
    """Between two probes of a node that is up."""
    unhealthy_interval_s: float = 1.0
    concurrency: int = 10
    """Probes of this upstream at a time."""


@attrs.frozen
class Ejection:
    """A node that fails too often in a row is left out for a while, whatever the checks say of it."""

    failures: int = 5
    """Connects of sessions that failed, one after another."""
    time_s: float = 30.0
    """The first time; the second time twice as long, and so on."""
    max_time_s: float = 300.0
    max_percent: int = 50
    """Of the nodes that may be out at a time."""


@attrs.frozen
class Checks:
    """Everything that decides whether a node of an upstream is up."""

    active: ActiveCheck | None = None
    passive: Thresholds | None = None
    """What the connects of sessions tell."""
    recover_after_s: float = 30.0
    """Without active checks nobody would find out that a node is well again: it is tried after this long."""
    ejection: Ejection | None = None
    fails_open: bool = True
    """While every node is down all are used."""
    ends_sessions: bool = False
    """Sessions on a node that goes down are ended."""
