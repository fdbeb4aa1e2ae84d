"""Finding the gateway and asking it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.cli.client import fetch_status, status_url
from streamgw.cli.failure import Failure
from tests.support.ports import Ports
from tests.support.status_endpoint import STATUS, serving


def test_the_settings_say_where(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    config.write_text("apisix: {status: {ip: '::1', port: 7086}}")
    assert status_url(config) == "http://[::1]:7086"
    config.write_text("streamgw: {enable_status: false}")
    with pytest.raises(Failure, match="has no status endpoint; name one with --url") as failure:
        status_url(config)
    assert failure.value.exit_code == 78


def test_any_way_to_write_the_url(tmp_path: Path) -> None:
    with serving(lambda: STATUS) as url:
        assert fetch_status(url) == STATUS
        assert fetch_status(url + "/streamgw/v1/status") == STATUS
        assert fetch_status(url.removeprefix("http://")) == STATUS


def test_nobody_answers() -> None:
    with Ports() as ports:
        closed = ports.take()
        for url in (
            f"http://127.0.0.1:{closed}",
            f"https://127.0.0.1:{closed}",
            "http://127.0.0.1:port",
            "http://[::1",
        ):
            with pytest.raises(Failure, match="no gateway answers at") as failure:
                fetch_status(url)
            assert failure.value.exit_code == 69


@pytest.mark.parametrize(("body", "code"), [({}, 200), ([], 200), (b"<html>", 200), (STATUS, 404)])
def test_somebody_else_answers(body: object, code: int) -> None:
    with (
        serving(lambda: body, code=code) as url,
        pytest.raises(Failure, match=f"is no streamgw .HTTP {code}.") as failure,
    ):
        fetch_status(url)
    assert failure.value.exit_code == 69
