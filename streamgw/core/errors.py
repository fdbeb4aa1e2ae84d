"""What can go wrong, whose fault it is, and whether the next node may help.

Every way a session can end has one word in `Reason`; the list is closed, because access logs, metrics and alerts are
built on it. A `SessionError` carries its reason, its fault and whether another node may be tried; the boundary in
`dataplane/session.py` turns it into an outcome. Whatever else is raised there is a bug.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Literal

import attrs

Side = Literal["client", "upstream"]


class Fault(enum.StrEnum):
    """Who has to act. Decides the level of the log line: client `info`, upstream `warning`, the others `error`."""

    NONE = "none"
    CLIENT = "client"
    UPSTREAM = "upstream"
    OPERATOR = "operator"
    GATEWAY = "gateway"


class Reason(enum.StrEnum):
    """Why a session ended. Closed list: adding one is a change for users (docs/glossary.md, CHANGELOG.md)."""

    CLOSED = "closed"
    """Both sides said EOF and every byte was delivered."""
    RESET = "reset"
    """One peer reset the connection; `side` says which. The other side was reset too."""
    IDLE_TIMEOUT = "idle_timeout"
    MAX_DURATION = "max_duration"
    NO_ROUTE = "no_route"
    NO_UPSTREAM = "no_upstream"
    """The route that matched names no upstream."""
    NO_NODE = "no_node"
    """No node may be dialled: none is listed, all weights are 0, or no name resolves."""
    CONNECT_FAILED = "connect_failed"
    BAD_PREFACE = "bad_preface"
    """The first bytes are not what the listener expects (PROXY header, ClientHello)."""
    TLS_FAILED = "tls_failed"
    """No certificate for the name, or the handshake failed; `side` says with whom."""
    PREREAD_TIMEOUT = "preread_timeout"
    PREREAD_LIMIT = "preread_limit"
    EXHAUSTED = "exhausted"
    """The gateway ran out of descriptors, pipes, memory, or local ports."""
    DRAIN = "drain"
    """Cut at the drain deadline."""
    KILLED = "killed"
    """Ended by an operator."""
    NODE_DOWN = "node_down"
    """The session's node was found down, and its upstream says that sessions shall not outlast that."""
    REJECTED = "rejected"
    """A plugin refused the client; `detail` names it."""
    EVICTED = "evicted"
    """A UDP session that made room for another one at a limit."""
    MOVED = "moved"
    """A UDP session whose node went away: the client's next datagram began another one."""
    BUG = "bug"

    # Not Enum's own, which is written in Python, and hashes another word than the equal `str` does.
    __hash__ = str.__hash__


class StreamgwError(Exception):
    """Base of every error that streamgw raises on purpose."""


class SessionError(StreamgwError):
    """An expected end of one session. Subclasses say why, whose fault, and whether the next node may help."""

    reason: ClassVar[Reason]
    fault: ClassVar[Fault]
    retryable: ClassVar[bool] = False


class ParseError(SessionError):
    """These bytes cannot become what they should be, whatever follows."""

    reason = Reason.BAD_PREFACE
    fault = Fault.CLIENT


class PrereadTimeout(SessionError):
    """The client owed its first bytes (a PROXY header, a ClientHello) and did not send them in time."""

    reason = Reason.PREREAD_TIMEOUT
    fault = Fault.CLIENT


class PrereadTooLong(SessionError):
    """The first bytes did not make sense within the byte limit."""

    reason = Reason.PREREAD_LIMIT
    fault = Fault.CLIENT


class NoRoute(SessionError):
    """No route matches."""

    reason = Reason.NO_ROUTE
    fault = Fault.CLIENT


class NoUpstream(SessionError):
    """The route that matched has no upstream."""

    reason = Reason.NO_UPSTREAM
    fault = Fault.OPERATOR


class NoNode(SessionError):
    """The upstream has no node that may be dialled."""

    reason = Reason.NO_NODE
    fault = Fault.UPSTREAM


class ConnectFailed(SessionError):
    """A node refused, was unreachable, or did not answer in time. No byte was exchanged with it."""

    reason = Reason.CONNECT_FAILED
    fault = Fault.UPSTREAM
    retryable = True


class TLSFailed(SessionError):
    """The handshake with the client did not come about: no certificate, a bad one, no common version, too slow."""

    reason = Reason.TLS_FAILED
    fault = Fault.CLIENT


class UpstreamTLSFailed(ConnectFailed):
    """The handshake with a node failed. Nothing of the client's was sent: the next node may be tried."""

    reason = Reason.TLS_FAILED


class NoPortLeft(ConnectFailed):
    """Every local port towards a node is taken, of which it knows nothing. There may be some towards the next node."""

    reason = Reason.EXHAUSTED
    fault = Fault.GATEWAY


class Exhausted(SessionError):
    """A limit of this machine or process was met: descriptors, memory, what one user may watch; over UDP also ports."""

    reason = Reason.EXHAUSTED
    fault = Fault.GATEWAY


class PeerReset(SessionError):
    """The client reset its connection before a relay had begun."""

    reason = Reason.RESET
    fault = Fault.CLIENT


class Rejected(SessionError):
    """A plugin refuses the client.

    Args:
      status: what access log and metrics call it, in the words of nginx: 403, or 503 for a limit.
      reset: the client gets an RST instead of a plain close.
    """

    reason = Reason.REJECTED
    fault = Fault.CLIENT

    def __init__(self, message: str, *, status: int = 403, reset: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.reset = reset


class Answered(SessionError):
    """A plugin has answered the client itself: there is nothing to relay. Over UDP nothing is said.

    Args:
      words: for the client, as plain text; at most as much as its socket takes at once.
    """

    reason = Reason.CLOSED
    fault = Fault.NONE

    def __init__(self, words: bytes) -> None:
        super().__init__("answered by a plugin")
        self.words = words


class Drained(SessionError):
    """The gateway ended the session before a relay had begun, because it stops."""

    reason = Reason.DRAIN
    fault = Fault.NONE


class Killed(SessionError):
    """An operator ended the session before a relay had begun."""

    reason = Reason.KILLED
    fault = Fault.NONE


@attrs.frozen(order=True)
class Problem:
    """One thing wrong with the configuration, and where. Prints as `file:line:column pointer: message`."""

    file: str
    """As the user named the directory: `routes.d/mysql.yaml`."""
    line: int
    """From 1; 0 when the problem has no line (a missing file)."""
    column: int
    """From 1; 0 when unknown."""
    pointer: str
    """`stream_routes[0].upstream.nodes[1].port`; empty for the whole file."""
    message: str
    """What was expected, and what is there: `expected an integer 1–65535, got '80'`. Never a secret."""
    error_msg: str = attrs.field(default="", kw_only=True, eq=False, order=False, repr=False)
    """The same for clients of the Admin API: the answer of APISIX to such an object. Empty: nobody needs it."""

    def as_data(self) -> dict[str, str | int]:
        """For programs: what `check -o json` and the status page show of it."""
        return attrs.asdict(self, filter=lambda field, _: field.name != "error_msg")

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
            if self.column:
                place += f":{self.column}"
        return f"{place} {self.pointer}: {self.message}" if self.pointer else f"{place}: {self.message}"


class ConfigError(StreamgwError):
    """The configuration is rejected, with every problem of every file. Nothing of it was applied."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        assert problems, "a ConfigError names at least one problem"
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class StoreError(StreamgwError):
    """A file could not be written or read: it exists already, it changed meanwhile, the disk said no."""
