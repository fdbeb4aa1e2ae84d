"""The limits of the settings, in the terms of the data plane; and one worker's share of them."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable

import attrs

from streamgw.config.settings import Settings
from streamgw.config.settings_schema import SHARED_LIMITS
from streamgw.core.udp_sessions import UDPLimits
from streamgw.dataplane.session import Policy


def policy(settings: Settings) -> Policy:
    """For TCP sessions."""
    limits = settings.limits
    return Policy(
        trusted_proxies=settings.trusted_proxies,
        preread_timeout_s=limits.preread_timeout_s,
        preread_limit_bytes=limits.preread_limit_bytes,
        handshake_timeout_s=limits.handshake_timeout_s,
        max_handshakes=limits.max_handshakes or math.inf,
        max_duration_s=limits.max_session_duration_s or math.inf,
        max_sessions=limits.max_sessions or math.inf,
        max_sessions_per_listener=limits.max_sessions_per_listener or math.inf,
    )


def udp_limits(settings: Settings) -> UDPLimits:
    """For UDP sessions."""
    limits = settings.limits
    # A datagram is all it takes to begin a session, and its sender's address may be forged. At a limit of sessions one makes
    # way; out of descriptors nobody does, and TCP, reloads and the Admin API stand still until sessions idle out.
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = math.inf if descriptors == resource.RLIM_INFINITY else descriptors // 2
    return UDPLimits(
        max_sessions=min(limits.max_udp_sessions or math.inf, room),
        max_sessions_per_listener=limits.max_udp_sessions_per_listener or math.inf,
        max_sessions_per_client=limits.max_udp_sessions_per_client or math.inf,
        session_rate_per_client=limits.udp_session_rate_per_client,
        queue_datagrams=limits.udp_queue_datagrams,
    )


def share(settings: Settings, slot: int, slots: int) -> Settings:
    """What one worker of several goes by: its part of whatever the whole gateway may have.

    The parts add up to the limit, and no worker gets none: settings with a limit below the number of workers are refused
    when they are read.
    """
    limits = settings.limits
    return attrs.evolve(
        settings,
        limits=attrs.evolve(
            limits,
            **{name: _part(getattr(limits, name), slot, slots) for name in SHARED_LIMITS},
            udp_session_rate_per_client=limits.udp_session_rate_per_client / slots,
        ),
        listeners=tuple(
            attrs.evolve(listener, max_sessions=_part(listener.max_sessions, slot, slots))
            for listener in settings.listeners
        ),
    )


def part_of_nodes(settings: Settings, slot: int) -> Callable[[int], int]:
    """One worker's part of an upstream's `max_conns`: all parts together are the limit, unless it is lower than the number of
    workers. Then each has one session, as otherwise clients of the others would never get any.
    """
    return lambda limit: max(_part(limit, slot, settings.workers), min(limit, 1))


def _part(limit: int, slot: int, slots: int) -> int:
    return limit // slots + (slot < limit % slots)
