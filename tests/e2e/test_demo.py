"""`streamgw demo`: what it prints to try does what it says."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.child import Child, run, running, wait_until
from tests.support.gateway import PLAIN, STREAMGW
from tests.support.namespace import private_network
from tests.support.servers import Prefix

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@attrs.frozen
class Scene:
    """The demo on a copy of the shipped files, in a network of its own."""

    directory: Path
    prefix: Prefix
    demo: Child

    def commands(self) -> list[str]:
        """What it prints to try: the indented lines, up to the explanation."""
        return re.findall(r"^  (\S.*?)(?:  .*)?$", self.demo.output(), re.MULTILINE)

    def type(self, command: str) -> str:
        return run([*self.prefix, "sh", "-c", command], cwd=self.directory).stdout


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    directory = tmp_path / "checkout"
    for name in ("conf", "routes.d"):
        shutil.copytree(ROOT / name, directory / name)
    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(private_network(tmp_path))
        command = [*prefix, *STREAMGW, "demo"]
        demo = running(command, log=tmp_path / "demo.log", cwd=directory, env=PLAIN, name="demo")
        child = stack.enter_context(demo)
        child.wait_for_line("Ctrl-C")
        yield Scene(directory, prefix, child)


def test_it_prints_three_commands_that_work(scene: Scene, tmp_path: Path) -> None:
    nc, curl, edit = scene.commands()
    assert (nc.split()[0], curl.split()[0], edit.split()[0]) == ("nc", "curl", "sed")

    command = [*scene.prefix, *nc.split()]
    with running(command, log=tmp_path / "nc.log", name="nc", talk=True) as visitor:
        visitor.tell("hello\n")
        assert visitor.wait_for_line("hello") == "upstream 1995: hello"

        assert "1995" in scene.type(curl)
        scene.type(edit)
        wait_until(lambda: "1996" in scene.type(curl), what="the edit takes effect")

        visitor.tell("still there?\n")
        assert visitor.wait_for_line("still there?") == "upstream 1995: still there?"
