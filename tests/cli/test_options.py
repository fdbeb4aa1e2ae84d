"""Options that commands share."""

from __future__ import annotations

import pytest

from streamgw.cli.failure import Failure
from streamgw.cli.options import read_settings
from tests.cli.conftest import Desk


def test_settings_are_read(desk: Desk) -> None:
    assert [listener.port for listener in read_settings(desk.config).listeners] == [9100, 9101]


def test_broken_settings_end_the_command_with_78(desk: Desk) -> None:
    desk.config.write_text("apisix: {stream_prox: 1}\nx: 1\n")

    with pytest.raises(Failure) as failure:
        read_settings(desk.config)

    assert failure.value.exit_code == 78
    assert len(failure.value.lines) == 2


def test_an_unknown_way_to_print_is_wrong_usage(desk: Desk) -> None:
    assert desk.run("route", "list", "--output", "xml").exit_code == 2
