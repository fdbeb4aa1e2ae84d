"""streamgw completion"""

from __future__ import annotations

import pytest

from tests.cli.conftest import Desk


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_every_shell(desk: Desk, shell: str) -> None:
    result = desk.run("completion", shell)

    assert result.exit_code == 0
    assert f"_STREAMGW_COMPLETE={shell}_complete" in result.stdout


def complete(desk: Desk, words: str) -> list[str]:
    environ = {
        "_STREAMGW_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = desk.run(environ=environ)
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_commands_are_completed(desk: Desk) -> None:
    assert complete(desk, "streamgw r") == ["run", "route"]
    assert complete(desk, "streamgw route d") == ["disable"]


def test_ids_are_completed(desk: Desk) -> None:
    assert complete(desk, "streamgw route get m") == ["mysql"]
    assert complete(desk, "streamgw upstream get ") == ["cache"]

    desk.routes.rename("elsewhere")
    assert complete(desk, "streamgw route get m") == []
