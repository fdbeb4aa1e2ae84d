"""Limits, and the share of each worker."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.settings import LimitSettings, Settings
from streamgw.core.model import Listener
from streamgw.process.limits import part_of_nodes, policy, share, udp_limits

SHARED = (
    "max_sessions",
    "max_sessions_per_listener",
    "max_handshakes",
    "max_udp_sessions",
    "max_udp_sessions_per_listener",
    "max_udp_sessions_per_client",
)


@given(slots=st.integers(1, 16), extra=st.integers(0, 10_000))
def test_the_shares_add_up_to_the_limit_and_nobody_gets_none(slots: int, extra: int) -> None:
    limit = slots + extra
    listener = Listener("tcp", "127.0.0.1", 9100, max_sessions=limit)
    settings = Settings(listeners=(listener,), limits=LimitSettings(**dict.fromkeys(SHARED, limit)))

    shares = [share(settings, slot, slots) for slot in range(slots)]

    for name in SHARED:
        parts = [getattr(each.limits, name) for each in shares]
        assert sum(parts) == limit
        assert min(parts) >= 1
    assert sum(each.listeners[0].max_sessions for each in shares) == limit


def test_no_limit_stays_none() -> None:
    settings = Settings(limits=LimitSettings(**dict.fromkeys(SHARED, 0)))

    assert share(settings, 1, 4) == settings
    assert policy(share(settings, 1, 4)).max_sessions == math.inf


def test_a_rate_is_split_too() -> None:
    settings = Settings(limits=LimitSettings(udp_session_rate_per_client=10.0))

    assert udp_limits(share(settings, 0, 4)).session_rate_per_client == pytest.approx(2.5)


def test_one_worker_has_all() -> None:
    settings = Settings(limits=attrs.evolve(LimitSettings(), max_sessions=7))

    assert share(settings, 0, 1) == settings


@given(st.integers(0, 1000), st.integers(1, 64))
def test_the_parts_of_a_nodes_sessions_are_its_limit(limit: int, workers: int) -> None:
    settings = Settings(workers=workers)

    parts = [part_of_nodes(settings, number)(limit) for number in range(workers)]

    assert sum(parts) == (max(limit, workers) if limit else 0)
    assert max(parts) - min(parts) <= 1
