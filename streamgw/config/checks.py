"""`checks` of an upstream: how its nodes' health is found out, and what follows.

Fields, bounds and defaults are APISIX's, with three differences. `type` is `tcp` unless something else is written: at
layer 4 APISIX's `http` is a trap, which calls every database sick. The defaults of an inner object hold also if the object
is left out: in APISIX, `checks.active` without `unhealthy` finds nothing out. And what a stream has no use for
(`http_statuses` of passive checks) is accepted and named in a warning. Ours are the types `tls` and `udp`, and everything
under `streamgw`.

Source:
  APISIX `apisix/schema_def.lua` (health_checker), lua-resty-healthcheck.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, TypeAlias

import attrs

from streamgw.config.probes import TalkSpec, ready_made
from streamgw.config.rules import Duration, Port, PositiveSeconds, at_least, integer, text
from streamgw.config.strict import Fault, Stated, Wrong, shown
from streamgw.config.wording import Schema
from streamgw.core.probe import (
    HEALTHY_STATUSES,
    UNHEALTHY_STATUSES,
    ActiveCheck,
    Checks,
    Ejection,
    Probe,
    ProbeKind,
    Request,
    Thresholds,
)

Line: TypeAlias = Annotated[str, text()]
Times: TypeAlias = Annotated[int, integer(1, 254)]
TimesOrNone: TypeAlias = Annotated[int, integer(0, 254)]
Interval: TypeAlias = Annotated[int, integer(1)]
_STATUS = integer(200, 599)
_STATUSES_SCHEMA: Schema = at_least(1, _STATUS.schema, unique=True)
_MAX_TIMEOUT_S = 3600.0


def _statuses(value: object) -> frozenset[int]:
    if not isinstance(value, list) or not value:
        raise Wrong(f"expected a list of at least 1, got {shown(value)}")
    faults: list[Fault] = []
    found: set[int] = set()
    for at, each in enumerate(value):
        try:
            status = _STATUS(each)
        except Wrong as wrong:
            faults += (fault.under((at,)) for fault in wrong.faults)
        else:
            if status in found:
                faults.append(Fault((at,), f"{status} stands here twice"))
            found.add(status)
    if faults:
        raise Wrong(*faults)
    return frozenset(found)


Statuses: TypeAlias = Annotated[frozenset[int], Stated(_statuses, _STATUSES_SCHEMA)]


def _a_line(value: object) -> str:
    """Of HTTP: no line break may make two of it."""
    if type(value) is not str:
        raise Wrong(f"expected text, got {shown(value)}")
    if any(char in value for char in "\r\n\0"):
        raise Wrong("expected a single line")
    return value


HTTPLine: TypeAlias = Annotated[str, Stated(_a_line, {"type": "string", "pattern": r"^[^\r\n\x00]*$"})]


@attrs.frozen(kw_only=True)
class ActiveHealthySpec:
    """What makes a node that is down healthy."""

    interval: Interval = 1
    """Seconds between two probes of a node that is up."""
    http_statuses: Statuses = HEALTHY_STATUSES
    """Answers that count as success."""
    successes: Times = 2
    """In a row."""


@attrs.frozen(kw_only=True)
class ActiveUnhealthySpec:
    """What makes a node that is up unhealthy."""

    interval: Interval = 1
    """Seconds between two probes of a node that is down."""
    http_statuses: Statuses = UNHEALTHY_STATUSES
    """Answers that count as failure."""
    http_failures: Times = 5
    """In a row."""
    tcp_failures: Times = 2
    """Refused, unreachable, closed early, the wrong answer: in a row."""
    timeouts: Times = 3
    """In a row."""


@attrs.frozen(kw_only=True)
class ActiveExtrasSpec:
    """What an active check can do besides. Ours."""

    probe: Literal["redis", "mysql", "postgresql", "smtp", "ldap", "dns"] | None = None
    """A talk that is ready made."""
    user: Annotated[str, Stated(_a_line, {"type": "string"})] | None = None
    """Who the probes `mysql` and `postgresql` log in as; without a password, and it need not succeed."""
    talk: tuple[TalkSpec, ...] | None = None
    """What is said to the node, and expected of it."""

    schema: ClassVar[Schema] = {"not": {"required": ["probe", "talk"]}}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.probe is not None and self.talk is not None:
            yield Fault(("talk",), "'probe' and 'talk' exclude each other", at_key=True)
        if self.talk == ():
            yield Fault(("talk",), "expected at least one step")

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.user is not None and self.probe not in {"mysql", "postgresql"}:
            yield Fault(("user",), "does nothing without 'probe: mysql' or 'probe: postgresql'", at_key=True)


@attrs.frozen(kw_only=True)
class ActiveSpec:
    """Probes that the gateway sends."""

    type: ProbeKind = "tcp"
    """What a probe is. `tcp`, `tls`: a connection; `http`, `https`: a request; `udp`: a datagram and its answer."""
    timeout: PositiveSeconds = 1.0
    """Seconds for the whole of a probe."""
    concurrency: Annotated[int, integer(1)] = 10
    """Probes of this upstream at a time."""
    host: HTTPLine | None = None
    """The name asked for over TLS and HTTP; the node's if left out."""
    port: Port | None = None
    """Where probes go; the node's if left out."""
    http_method: HTTPLine = "GET"
    """Of http and https."""
    http_path: HTTPLine = "/"
    """Of http and https."""
    http_req_body: Line = ""
    """Of http and https."""
    req_headers: tuple[HTTPLine, ...] | None = None
    """Of http and https: lines like `X-Probe: yes`."""
    https_verify_certificate: bool = True
    """Of https and tls: whether the node's certificate must be one that this machine trusts."""
    healthy: ActiveHealthySpec = ActiveHealthySpec()
    unhealthy: ActiveUnhealthySpec = ActiveUnhealthySpec()
    streamgw: ActiveExtrasSpec | None = None
    """Talks of other protocols. Ours."""

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.timeout > _MAX_TIMEOUT_S:
            yield Fault(("timeout",), f"expected at most {_MAX_TIMEOUT_S:g} seconds")
        extras = self.streamgw or ActiveExtrasSpec()
        has_talk = extras.probe is not None or bool(extras.talk)
        if self.type in {"http", "https"} and has_talk:
            yield Fault(("streamgw",), f"a talk needs type tcp, tls or udp, not {self.type}", at_key=True)
        if self.type == "udp":
            if not has_talk:
                message = "udp needs 'streamgw.probe' or 'streamgw.talk': silence proves nothing"
                yield Fault(("type",), message)
            if extras.probe not in {None, "dns"}:
                yield Fault(("streamgw", "probe"), f"'{extras.probe}' is not spoken over udp")
            for at, step in enumerate(extras.talk or ()):
                if not step.says_something:
                    message = "over udp each step says something"
                    yield Fault(("streamgw", "talk", at), message)

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.type not in {"http", "https"}:
            for name in ("http_path", "http_method", "http_req_body", "req_headers"):
                if getattr(self, name) != getattr(ActiveSpec(), name):
                    message = f"does nothing with type {self.type}; write 'type: http' if that is meant"
                    yield Fault((name,), message, at_key=True)
        if self.streamgw is not None:
            yield from (fault.under(("streamgw",)) for fault in self.streamgw.warnings())

    def build(self) -> ActiveCheck:
        """As the prober knows it."""
        healthy, unhealthy, extras = self.healthy, self.unhealthy, self.streamgw or ActiveExtrasSpec()
        if extras.probe is not None:
            talk = ready_made(extras.probe, over_udp=self.type == "udp", user=extras.user)
        else:
            talk = tuple(step.build() for step in extras.talk or ())
        probe = Probe(
            kind=self.type,
            timeout_s=self.timeout,
            host=self.host or "",
            port=self.port or 0,
            verify=self.https_verify_certificate,
            request=Request(
                self.http_method, self.http_path, self.http_req_body, tuple(self.req_headers or ())
            ),
            healthy_statuses=healthy.http_statuses,
            unhealthy_statuses=unhealthy.http_statuses,
            talk=talk,
        )
        thresholds = Thresholds(
            successes=healthy.successes,
            tcp_failures=unhealthy.tcp_failures,
            timeouts=unhealthy.timeouts,
            http_failures=unhealthy.http_failures,
        )
        return ActiveCheck(
            probe, thresholds, float(healthy.interval), float(unhealthy.interval), self.concurrency
        )


@attrs.frozen(kw_only=True)
class PassiveHealthySpec:
    """What makes a node healthy."""

    http_statuses: Statuses | None = None
    """HTTP only."""
    successes: TimesOrNone = 5
    """Connects in a row."""


@attrs.frozen(kw_only=True)
class PassiveUnhealthySpec:
    """What makes a node unhealthy."""

    http_statuses: Statuses | None = None
    """HTTP only."""
    tcp_failures: TimesOrNone = 2
    """Connects that failed, in a row."""
    timeouts: TimesOrNone = 7
    """Connects that timed out, in a row."""
    http_failures: TimesOrNone = 5
    """HTTP only."""


@attrs.frozen(kw_only=True)
class PassiveSpec:
    """What the sessions themselves tell."""

    type: Literal["http", "https", "tcp"] = "tcp"
    """Does not matter at layer 4: connects are counted."""
    healthy: PassiveHealthySpec = PassiveHealthySpec()
    unhealthy: PassiveUnhealthySpec = PassiveUnhealthySpec()

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        for name, part in (("healthy", self.healthy), ("unhealthy", self.unhealthy)):
            if part.http_statuses is not None:
                yield Fault((name, "http_statuses"), "does nothing at layer 4", at_key=True)

    def build(self) -> Thresholds:
        """As `core/health.py` knows it."""
        return Thresholds(
            successes=self.healthy.successes,
            tcp_failures=self.unhealthy.tcp_failures,
            timeouts=self.unhealthy.timeouts,
        )


@attrs.frozen(kw_only=True)
class EjectionSpec:
    """Leave out a node that fails in a row, for a while that grows."""

    failures: Times = 5
    """Connects of sessions that failed, in a row."""
    time: Duration = 30.0
    """The first time; the second twice as long, and so on."""
    max_time: Duration = 300.0
    """The longest."""
    max_percent: Annotated[int, integer(1, 100)] = 50
    """Of the nodes that may be out at a time."""

    def build(self) -> Ejection:
        """As `core/health.py` knows it."""
        return Ejection(self.failures, self.time, self.max_time, self.max_percent)


@attrs.frozen(kw_only=True)
class ChecksExtrasSpec:
    """What follows from health. Ours."""

    recover_after: Duration = 30.0
    """Without active checks: a node that is down is tried again after this long."""
    on_all_down: Literal["open", "closed"] = "open"
    """While every node is down: use all of them, or none."""
    on_marked_down: Literal["keep", "close"] = "keep"
    """What happens to the sessions of a node that goes down."""
    ejection: EjectionSpec | None = None
    """Leave out nodes that fail in a row."""


@attrs.frozen(kw_only=True)
class ChecksSpec:
    """Health checks."""

    active: ActiveSpec | None = None
    """Probes that the gateway sends."""
    passive: PassiveSpec | None = None
    """What the sessions themselves tell."""
    streamgw: ChecksExtrasSpec | None = None
    """What follows. Ours; with it, `active` may be left out."""

    schema: ClassVar[Schema] = {"anyOf": [{"required": ["active"]}, {"required": ["streamgw"]}]}

    def check(self) -> Iterator[Fault]:
        """What no field alone can say."""
        if self.active is None and self.streamgw is None:
            message = "'active' is required; or 'streamgw', for passive checks that recover (recover_after)"
            words = 'object matches none of the required: ["active"] or ["active","passive"]'
            yield Fault((), message, apisix=words)
        elif self.active is None and self.passive is None and self.streamgw == ChecksExtrasSpec():
            yield Fault((), "nothing is checked: expected 'active', 'passive' or 'streamgw.ejection'")

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.active is not None:
            yield from (fault.under(("active",)) for fault in self.active.warnings())
            if self.streamgw is not None and self.streamgw.recover_after != ChecksExtrasSpec().recover_after:
                message = "does nothing with 'active': probes bring a node back"
                yield Fault(("streamgw", "recover_after"), message, at_key=True)
        if self.passive is not None:
            yield from (fault.under(("passive",)) for fault in self.passive.warnings())

    def build(self) -> Checks:
        """As the data plane knows it."""
        extras = self.streamgw or ChecksExtrasSpec()
        return Checks(
            active=None if self.active is None else self.active.build(),
            passive=None if self.passive is None else self.passive.build(),
            recover_after_s=extras.recover_after,
            ejection=None if extras.ejection is None else extras.ejection.build(),
            fails_open=extras.on_all_down == "open",
            ends_sessions=extras.on_marked_down == "close",
        )
