"""What a process tells of its sessions. That it tells so of real ones is shown by test_worker.py and test_rows.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping

import attrs
import pytest
from structlog.testing import capture_logs

from streamgw.config.settings import AccessLogSettings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import Fault, Reason
from streamgw.core.model import Address, Facts, Outcome
from streamgw.core.udp_sessions import Drop
from streamgw.process.reports import Reports

CLIENT = Address("10.0.0.1", 5)
FACTS = Facts("tcp", "tcp 127.0.0.1:9100", CLIENT, Address("127.0.0.1", 9100))
DONE = Outcome(
    session_id="a-1",
    facts=FACTS,
    peer=CLIENT,
    reason=Reason.CLOSED,
    fault=Fault.NONE,
    phase="relay",
    started_at=1.0,
    duration_s=2.0,
    connect_s=0.1,
    bytes_up=3,
    bytes_down=4,
)


@pytest.fixture
def said() -> Iterator[list[MutableMapping[str, object]]]:
    with capture_logs() as entries:
        yield entries


class Lines(list[str]):
    """In place of the access log."""

    path = "-"

    def write(self, line: str) -> None:
        self.append(line)

    def move(self, path: str) -> None:
        self.path = path


def reports_to(lines: Lines, **settings: object) -> Reports:
    reports = Reports(AccessLogSettings(**settings))
    reports.access_log = lines
    return reports


def test_a_session_is_a_line_and_a_count(said: list[MutableMapping[str, object]]) -> None:
    lines = Lines()
    reports = reports_to(lines)

    reports.ended(DONE)

    assert json.loads(lines[0])["reason"] == "closed"
    (cell,) = reports.tally.cells()
    assert cell.sessions == 1
    assert said == []


@pytest.mark.parametrize(
    ("fault", "level"),
    [
        (Fault.CLIENT, "info"),
        (Fault.UPSTREAM, "warning"),
        (Fault.OPERATOR, "error"),
        (Fault.GATEWAY, "error"),
    ],
)
def test_who_is_at_fault_says_how_loud(
    fault: Fault, level: str, said: list[MutableMapping[str, object]]
) -> None:
    reports_to(Lines()).ended(attrs.evolve(DONE, fault=fault, reason=Reason.RESET))

    (entry,) = said
    assert (entry["event"], entry["log_level"], entry["reason"]) == ("session_failed", level, "reset")


def test_the_form_of_lines_can_change_and_lines_can_end() -> None:
    lines = Lines()
    reports = reports_to(lines)

    reports.follow(AccessLogSettings(format="$remote_addr", path="elsewhere"))
    reports.ended(DONE)
    reports.follow(AccessLogSettings(enabled=False, path="elsewhere"))
    reports.ended(DONE)

    assert (lines, lines.path) == (["10.0.0.1"], "elsewhere")


async def test_the_feed_hears_what_it_wants() -> None:
    reports = reports_to(Lines())
    feed = reports.hub.subscribe(["session_closed", "reload"], {})

    reports.ended(DONE)
    reports.reload("settings", ReloadStatus(), 7)

    assert [(await feed.receive()).kind for _ in range(2)] == ["session_closed", "reload"]


def test_bugs_are_counted_and_shown(said: list[MutableMapping[str, object]]) -> None:
    reports = reports_to(Lines())

    reports.bug("relay")(ZeroDivisionError("odd"))

    assert reports.bugs == 1
    assert said[0]["phase"] == "relay"
    assert "ZeroDivisionError: odd" in str(said[0]["traceback"])


def test_dropped_datagrams_and_troubles_are_told(said: list[MutableMapping[str, object]]) -> None:
    reports = reports_to(Lines())

    reports.drops("udp 127.0.0.1:9200", {Drop.NO_ROUTE: 3})
    reports.trouble("accepting")("no descriptor is left")

    assert said[0]["no_route"] == 3
    assert (said[1]["event"], said[1]["trouble"]) == ("accepting", "no descriptor is left")
