"""The command as a whole: help, speed, errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from streamgw import __version__
from streamgw.cli.commands import COMMANDS, Commands, commands
from tests.cli.conftest import Desk


def test_help_names_every_command_and_exit_code(desk: Desk) -> None:
    result = desk.run("--help")

    assert result.exit_code == 0
    for word in (*COMMANDS, "65  what routes.d says is wrong", "78  what config.yaml says is wrong"):
        assert word in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_the_commands_say(desk: Desk, name: str) -> None:
    result = desk.run(name, "--help")

    assert result.exit_code == 0
    assert COMMANDS[name] in result.output.replace("\n  ", " ")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom streamgw.cli.commands import commands\ncommands(['--help'], standalone_mode=False)\n"
        "heavy = {'trio', 'yaml', 'cattrs', 'rich', 'starlette', 'hypercorn', 'structlog', 'dns', 'watchfiles', 'cryptography'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_every_command_takes_the_same_paths(desk: Desk) -> None:
    elsewhere = desk.directory / "elsewhere"
    desk.routes.rename(elsewhere)

    by_option = desk.run("route", "list", "-r", "elsewhere", "-o", "json")
    by_variable = desk.run("route", "list", "-o", "json", environ={"STREAMGW_ROUTES": "elsewhere"})

    assert by_option.exit_code == by_variable.exit_code == 0
    assert by_option.output == by_variable.output != ""


def test_the_version(desk: Desk) -> None:
    assert desk.run("--version").output == f"streamgw, version {__version__}\n"


def test_an_unknown_command_is_wrong_usage(desk: Desk) -> None:
    result = desk.run("rout")

    assert result.exit_code == 2
    assert "No such command 'rout'" in result.stderr


def test_an_error_is_a_line_on_stderr_and_no_traceback(desk: Desk) -> None:
    result = desk.run("route", "list", "-r", "nowhere")

    assert result.exit_code == 74
    assert result.stderr == "error: nowhere: No such file or directory\n"
    assert result.stdout == ""


def test_the_name_of_a_file_may_be_any_bytes(desk: Desk) -> None:
    """Standard output takes nothing but UTF-8 in most locales."""
    (desk.routes / os.fsdecode(b"a\xff.yaml")).write_text("stream_routes: [")
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}

    found, missed = (
        subprocess.run(
            [sys.executable, "-m", "streamgw", *arguments], check=False, capture_output=True, env=environ
        )
        for arguments in (["check"], ["route", "list", "-r", b"none\xff"])
    )

    assert found.returncode == 65
    assert b"routes.d/a\\udcff.yaml:1:17: not YAML" in found.stdout
    assert (missed.returncode, missed.stderr) == (74, b"error: none\\udcff: No such file or directory\n")


def test_a_bug_keeps_its_traceback(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("streamgw.cli.route.list_objects", broken)

    with pytest.raises(ZeroDivisionError):
        desk.run("route", "list")


def test_the_module_runs_too() -> None:
    assert isinstance(commands, Commands)
    shown = subprocess.run(
        [sys.executable, "-m", "streamgw", "--version"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert __version__ in shown.stdout
