"""The pictures of docs/: the page and `streamgw top` on a gateway with something to do.

They are made anew on each run and looked at by a person; STREAMGW_PICTURES=docs/images puts them in place.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from playwright.sync_api import Page, expect
from rich.console import Console
from rich.text import Text

from tests.support.browser import chromium, tab
from tests.support.certificates import issue
from tests.support.child import find_program, run, running
from tests.support.gateway import PLAIN, STREAMGW, Gateway, stream_route
from tests.support.namespace import private_network
from tests.support.origin import named_origin
from tests.support.ports import Ports
from tests.support.pty_screen import program_on, pty_screen
from tests.support.servers import Prefix
from tests.support.tls_clients import ssl_object

pytestmark = [pytest.mark.slow, pytest.mark.servers]

ROOT = Path(__file__).parents[2]
ADMIN = 9180
URL = f"http://127.0.0.1:{ADMIN}/ui/"
LIMIT_BYTES = 200_000
"""Of one picture: they are in the repository for ever."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they go."""
    wanted = os.environ.get("STREAMGW_PICTURES")
    directory = ROOT / wanted if wanted else tmp_path_factory.mktemp("pictures")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@attrs.frozen
class Scene:
    """A gateway as one would run it, in a network of its own, with a crowd in front of it."""

    gateway: Gateway
    prefix: Prefix
    directory: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("scene")
    with contextlib.ExitStack() as stack:
        gateway = Gateway(directory / "gateway", stack.enter_context(Ports()))
        prefix = stack.enter_context(private_network(directory))
        network = _give_addresses(prefix)
        for port in (3306, 3307, 6379, 5432):
            stack.enter_context(named_origin(directory, port, f"o{port}", prefix=prefix))
        _write(gateway, network)
        stack.enter_context(gateway.running(prefix=prefix, wait=False)).wait_for_line("ready")
        crowd = [*prefix, sys.executable, "-m", "tests.support.crowd", json.dumps(_plan(network))]
        child = stack.enter_context(
            running(crowd, log=directory / "crowd.log", name="crowd", env=PLAIN, cwd=ROOT)
        )
        child.wait_for_line("here they come")
        yield Scene(gateway, prefix, directory)


def _give_addresses(prefix: Prefix) -> str:
    """Clients of 10.0.0.0/8 where we have a network to ourselves, of the loopback's own otherwise."""
    if not prefix:
        return "127."
    ip = find_program("ip", package="iproute2")
    run([*prefix, ip, "route", "add", "local", "10.0.0.0/8", "dev", "lo"])
    return "10."


def _write(gateway: Gateway, network: str) -> None:
    gateway.write_settings(
        ["127.0.0.1:9100", "127.0.0.1:9101", {"addr": "127.0.0.1:9443", "tls": True}],
        deployment={
            "admin": {"admin_key_required": False, "admin_listen": {"ip": "127.0.0.1", "port": ADMIN}}
        },
    )
    orders = {"id": "orders", "nodes": {"127.0.0.1:3306": 2, "127.0.0.1:3307": 1}, "type": "roundrobin"}
    mysql = {"id": "mysql", "server_port": 9100, "upstream_id": "orders", "desc": "the main database"}
    reports = stream_route("reports", 3399, server_port=9100, remote_addr=f"{network}30.0.0/16", priority=10)
    gateway.write_routes("databases.yaml", reports, mysql, upstreams=[orders])
    gateway.write_routes(
        "cache.yaml",
        stream_route("sessions-cache", 6379, server_port=9101, remote_addr=f"{network}20.0.0/16"),
    )
    gateway.write_routes(
        "billing.yaml", stream_route("billing", 5432, server_port=9443, sni="*.billing.example")
    )
    billing = ssl_object(issue("*.billing.example"), "*.billing.example", id="billing")
    gateway.write_routes("certificates.yaml", ssls=[billing])


def _plan(network: str) -> list[dict[str, object]]:
    return [
        {
            "count": 26,
            "port": 9100,
            "network": f"{network}20.1.",
            "rate": 40_000,
            "stay_s": 12,
            "rudeness": 0.2,
        },
        {"count": 4, "port": 9100, "network": f"{network}20.7.", "rate": 900_000, "stay_s": 60},
        {"count": 1, "port": 9100, "network": f"{network}30.4.", "rate": 10, "stay_s": 5},
        {"count": 8, "port": 9101, "network": f"{network}20.3.", "rate": 3000, "stay_s": 5},
        {"count": 1, "port": 9101, "network": f"{network}40.9.", "rate": 10, "stay_s": 5},
        {
            "count": 6,
            "port": 9443,
            "network": f"{network}20.5.",
            "rate": 9000,
            "stay_s": 20,
            "name": "eu.billing.example",
        },
    ]


@pytest.fixture(scope="module")
def wrapper(scene: Scene) -> Path:
    """Chromium inside that network."""
    program = find_program("chromium", package="chromium")
    script = scene.directory / "chromium"
    script.write_text(f'#!/bin/sh\nexec {" ".join([*scene.prefix, program])} "$@"\n')
    script.chmod(0o755)
    return script


def settle(page: Page, view: str) -> None:
    """A view that has something to show."""
    page.goto(f"{URL}#{view}")
    expect(page.locator("#link")).to_have_text("live")


def take(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    assert 5_000 < path.stat().st_size < LIMIT_BYTES


def test_the_page(scene: Scene, wrapper: Path, pictures: Path) -> None:
    with chromium(program=wrapper) as browser:
        with tab(browser, width=1120, height=700) as page:
            settle(page, "overview")
            # A line of figures needs some: one comes every two seconds.
            expect(page.locator(".spark .line").first).to_have_attribute(
                "d", re.compile(r"(?:[^L]*L){12}"), timeout=60_000
            )
            expect(page.locator(".reasons")).to_contain_text("no_route")
            take(page, pictures / "ui-overview.png")
            settle(page, "explain?remote_addr=10.20.1.7&server_port=9443&sni=eu.billing.example")
            expect(page.locator(".verdict")).to_contain_text("billing")
            page.get_by_text("3 other routes").click()
            expect(page.locator("details tr", has_text="mysql")).to_be_visible()
            take(page, pictures / "ui-explain.png")
        with tab(browser, width=1120, height=700, dark=True) as page:
            settle(page, "sessions")
            expect(page.locator("td:nth-child(9)", has_text="/s").nth(5)).to_be_visible()
            page.get_by_role("button", name="Rate").click()
            expect(page.get_by_role("columnheader", name="Rate")).to_have_attribute("aria-sort", "descending")
            take(page, pictures / "ui-sessions.png")
            scene.gateway.write_routes("new.yaml", {"id": "new", "server_prot": 9100})
            settle(page, "routes")
            expect(page.get_by_role("alert")).to_contain_text("server_prot")
            take(page, pictures / "ui-routes.png")
            (scene.gateway.routes / "new.yaml").unlink()


def test_top(scene: Scene, pictures: Path) -> None:
    width, height = 132, 38
    environ = {**os.environ, **PLAIN, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    del environ["NO_COLOR"]
    command, place = [*scene.prefix, *STREAMGW, "top", "-d", "1"], scene.gateway.directory
    with (
        pty_screen(width, height) as screen,
        program_on(screen, command, environ=environ, cwd=place) as process,
    ):
        screen.wait_until(
            lambda text: text.count("/s") > 12 and text.count(" upstream ") > 2, what="rates and closes"
        )
        screen.press("\x1b[B\x1b[B")
        screen.wait_until(lambda _: "\x1b[7m" in screen.frame, what="a choice")
        frame = screen.frame
        screen.press("q")
        assert process.wait(30) == 0

    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(frame.replace("\r", "")))
    # A picture that fetches a font from elsewhere is none.
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="streamgw top"), flags=re.DOTALL)
    path = pictures / "top.svg"
    path.write_text(drawn.replace("Fira Code", "ui-monospace"))
    assert "url(" not in drawn.replace("url(#", "")
    assert path.stat().st_size < LIMIT_BYTES


@pytest.mark.parametrize("page", ["docs/ui.md", "docs/top.md"])
def test_the_pictures_of_a_page_are_there(page: str) -> None:
    named = re.findall(r"!\[[^\]]+\]\((\S+)\)", (ROOT / page).read_text())

    assert named
    assert [name for name in named if not (ROOT / "docs" / name).exists()] == []
