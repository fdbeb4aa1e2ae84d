"""streamgw check"""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Desk


def test_what_is_right_is_said_in_one_line(desk: Desk) -> None:
    result = desk.run("check")

    assert result.exit_code == 0
    assert result.stdout.startswith("ok: 2 listeners, 2 routes (revision ")


def test_every_problem_of_every_file_is_said_at_once(desk: Desk) -> None:
    (desk.routes / "a.yaml").write_text(
        "stream_routes:\n  - id: a\n    server_port: '80'\n  - id: c\n    upstream_id: nix\n"
    )
    (desk.routes / "b.yaml").write_text("stream_routes: [{id: b, prot: 1}]\n")

    result = desk.run("check")

    assert result.exit_code == 65
    assert (
        "error: routes.d/a.yaml:3:18 stream_routes[0].server_port: expected an integer 1–65535"
        in result.stdout
    )
    assert "error: routes.d/a.yaml:5:18 stream_routes[1].upstream_id:" in result.stdout
    assert "error: routes.d/b.yaml:1:25 stream_routes[0].prot:" in result.stdout
    assert result.stdout.endswith("3 problems, 0 warnings\n")


def test_broken_settings_weigh_more(desk: Desk) -> None:
    desk.config.write_text("apisix: {stream_proxy: {tcp: [99999]}}")
    desk.hand_written.write_text("stream_routes: [{id: 1, server_port: 0, upstream: {nodes: {}}}]")

    result = desk.run("check")

    assert result.exit_code == 78
    assert "error: conf/config.yaml:1:" in result.stdout
    assert "error: routes.d/mine.yaml:1:" in result.stdout
    assert "warning" not in result.stdout.replace("0 warnings", "")


def test_broken_settings_do_not_hide_that_the_routes_are_fine(desk: Desk) -> None:
    desk.config.unlink()

    result = desk.run("check", "-o", "json")

    assert result.exit_code == 78
    said = json.loads(result.stdout)
    assert said["ok"] is False
    assert [problem["file"] for problem in said["problems"]] == ["conf/config.yaml"]
    assert said["warnings"] == []


def test_warnings_do_not_reject(desk: Desk) -> None:
    desk.config.write_text(desk.config.read_text().replace("9101", "9102"))

    human, machine = desk.run("check"), desk.run("check", "--output", "json")

    assert human.exit_code == 0
    assert "warning: routes.d/mine.yaml:5:" in human.stdout
    (warning,) = json.loads(machine.stdout)["warnings"]
    assert (warning["file"], warning["line"], warning["pointer"]) == (
        "routes.d/mine.yaml",
        5,
        "stream_routes[0].server_port",
    )


@pytest.mark.parametrize("name", ["a,b.yaml", "a.yaml"])
def test_annotations_for_pull_requests(desk: Desk, name: str) -> None:
    (desk.routes / name).write_text(
        "stream_routes:\n  - id: a\n    server_port: '8%0'\n    upstream: {nodes: {}}\n"
    )
    (desk.routes / "bad.yaml").write_bytes(b"\xff")

    result = desk.run("check", "-o", "github")

    assert result.exit_code == 65
    escaped = name.replace(",", "%2C")
    assert (
        f"::error file=routes.d/{escaped},line=3,col=18::stream_routes[0].server_port: expected"
        in result.stdout
    )
    assert "8%250" in result.stdout
    assert "::error file=routes.d/bad.yaml,line=1,col=1::not UTF-8" in result.stdout
