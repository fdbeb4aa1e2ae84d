from __future__ import annotations

import platform

import pytest

from streamgw.dataplane.pump import sockmap_trial
from streamgw.dataplane.pump.bpf import SLOTS, Unavailable
from streamgw.dataplane.pump.sockmap import Lease
from streamgw.dataplane.pump.sockmap_trial import open_maps
from tests.support.bridge import Way, skip_unless_possible
from tests.support.descriptors import open_descriptors, opened_since


@pytest.fixture
def kernel() -> None:
    skip_unless_possible(Way(in_kernel=True))


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_does_what_it_must_passes_and_the_maps_are_empty_again() -> None:
    before = open_descriptors()

    maps = open_maps()
    assert not any(maps.state.words[8 * slot] for slot in range(SLOTS)), "no cookie is left"
    maps.close()

    assert not opened_since(before)


@pytest.mark.parametrize("release", ["5.15.0-91-generic", "6.17.9", "mystery"])
def test_a_kernel_that_nobody_has_tested_is_refused(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)

    with pytest.raises(Unavailable, match=rf"it was tested on Linux 6\.18, and this is {release}"):
        open_maps()


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_does_not_send_what_was_redirected_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = open_descriptors()
    monkeypatch.setattr(sockmap_trial, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Lease, "settle", lambda self, peer: False)

    with pytest.raises(Unavailable, match="the self-test failed: redirected bytes were not sent"):
        open_maps()

    assert not opened_since(before)


@pytest.mark.usefixtures("kernel")
def test_bytes_that_do_not_arrive_fail_the_test_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    monkeypatch.setattr(sockmap_trial, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Lease, "arm", lambda self, sock, now, watch, **_: True)

    with pytest.raises(Unavailable, match="the self-test failed: timed out"):
        open_maps()

    assert not opened_since(before)
