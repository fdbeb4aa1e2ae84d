"""Records on their way to a collector: which of them go together and when, what a failure costs, and how many may wait.

No clock and no socket: whoever sends asks `due_at`, takes a batch, and says how it went.

Source:
  APISIX `apisix/utils/batch-processor.lua` (the names of its settings are those of the fields below).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal, TypeAlias

import attrs

UDP_LIMIT_BYTES = 65507
"""What a datagram over IPv4 can hold."""


@attrs.frozen(kw_only=True)
class BatchPolicy:
    """When records are sent, how often it is tried, and what is too much."""

    max_records: int = 1000
    """`batch_max_size`: a batch this large is sent at once."""
    inactive_s: float = 5.0
    """`inactive_timeout`: sent when nothing was added for this long."""
    buffer_s: float = 60.0
    """`buffer_duration`: sent when its oldest record is this old."""
    max_retries: int = 0
    """`max_retry_count`: a batch that fails once more than this is given up."""
    retry_delay_s: float = 1.0
    """`retry_delay`: between two tries of a batch."""
    max_pending: int = 8192
    """`max_pending_entries`: records that wait, those under way included. One more is dropped."""
    pending_limit_bytes: int = 1 << 20
    """`drop_limit`: their size."""
    record_limit_bytes: int = UDP_LIMIT_BYTES


@attrs.frozen(kw_only=True)
class OverTCP:
    """A line for each record, on a connection for each batch."""

    host: str
    port: int
    tls: bool = False
    verify: bool = False
    """Its certificate is checked."""
    server_name: str = ""
    """That TLS asks for, and that is verified. Empty: the host."""

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'tcp'}://{_place(self.host, self.port)}"


@attrs.frozen(kw_only=True)
class OverUDP:
    """A datagram for each record."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"udp://{_place(self.host, self.port)}"


@attrs.frozen(kw_only=True)
class OverHTTP:
    """A POST for each batch. Records are texts of JSON."""

    host: str
    port: int
    target: str = attrs.field(default="/", repr=False)
    """Path and query. May hold a secret: not in the name."""
    tls: bool = False
    verify: bool = True
    authorization: str = attrs.field(default="", repr=False)
    form: Literal["object", "array", "lines"] = "array"
    """The body: the one record of a batch, all of them as a list, or each as a line."""

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{_place(self.host, self.port)}"


@attrs.frozen(kw_only=True)
class ToFile:
    """A line for each record at the end of a file."""

    path: str
    """Relative: to the working directory of the gateway."""

    def __str__(self) -> str:
        return f"file:{self.path}"


Destination: TypeAlias = OverTCP | OverUDP | OverHTTP | ToFile


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@attrs.frozen(kw_only=True)
class Collector:
    """Where records go, and how. Equal values are one destination with one queue, however many routes name it."""

    to: Destination
    timeout_s: float = 3.0
    """For one batch: connecting, handshake and sending; with HTTP the answer, too."""
    policy: BatchPolicy = BatchPolicy()

    def __str__(self) -> str:
        """For the log and the metrics: `tls://logs.example:6514`."""
        return str(self.to)


@attrs.frozen
class _Waiting:
    record: bytes
    since: float


class Batches:
    """The queue of one collector. All times are of the same monotonic clock, in seconds."""

    __slots__ = ("_bytes", "_policy", "_records", "_retry_at", "_tries", "_under_way")

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._records: deque[_Waiting] = deque()
        self._bytes = 0
        self._under_way = 0
        """So many of the first records are the batch that was taken last."""
        self._tries = 0
        """Those of it that failed."""
        self._retry_at = -math.inf

    def __len__(self) -> int:
        """Records that wait, those under way included."""
        return len(self._records)

    @property
    def due_at(self) -> float:
        """When the next batch is to be taken; infinite when there is none."""
        if self._under_way:
            return self._retry_at
        if not self._records:
            return math.inf
        if len(self._records) >= self._policy.max_records:
            return self._records[0].since
        return min(
            self._records[0].since + self._policy.buffer_s, self._records[-1].since + self._policy.inactive_s
        )

    def add(self, record: bytes, now: float) -> bool:
        """Queue a record. False: there is no room, or it is too large; it is dropped."""
        policy = self._policy
        if (
            len(record) > policy.record_limit_bytes
            or len(self._records) >= policy.max_pending
            or self._bytes + len(record) > policy.pending_limit_bytes
        ):
            return False
        self._records.append(_Waiting(record, now))
        self._bytes += len(record)
        return True

    def take(self) -> tuple[bytes, ...]:
        """The next batch, oldest record first: the one that failed, if one did. Does not look at the time."""
        if not self._under_way:
            self._under_way = min(len(self._records), self._policy.max_records)
        return tuple(self._records[index].record for index in range(self._under_way))

    def succeeded(self) -> None:
        """The batch that was taken has been delivered."""
        self._forget_batch()

    def failed(self, now: float) -> int:
        """It has not. Returns how many records are given up with it; 0: it is to be taken again after a while."""
        self._tries += 1
        if self._tries <= self._policy.max_retries:
            self._retry_at = now + self._policy.retry_delay_s
            return 0
        lost = self._under_way
        self._forget_batch()
        return lost

    def _forget_batch(self) -> None:
        for _ in range(self._under_way):
            self._bytes -= len(self._records.popleft().record)
        self._under_way = self._tries = 0
        self._retry_at = -math.inf
