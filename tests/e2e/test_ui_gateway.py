"""The page and `streamgw top` on a real gateway: what a person does there happens, and what happens is seen there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import TIMEOUT_MS, chromium, tab
from tests.support.certificates import issue
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import Visitor, named_origin
from tests.support.ports import Ports
from tests.support.tls_clients import ssl_object

pytestmark = [pytest.mark.slow, pytest.mark.servers]

KEY = "open-sesame-open-sesame"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

expect.set_options(timeout=TIMEOUT_MS)


@attrs.frozen
class Scene:
    """A gateway with an Admin API, one route to an origin, and somebody who looks at the page."""

    gateway: Gateway
    page: Page
    port: int
    origin_port: int
    admin_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def visit(self, view: str = "overview") -> None:
        """Open a view with the key, and wait for the feed."""
        self.page.goto(f"{self.url}/ui/#{view}")
        box = self.page.get_by_label("Admin key")
        expect(box.or_(self.page.get_by_text("live", exact=True)).first).to_be_visible()
        if box.is_visible():
            box.fill(KEY)
            box.press("Enter")
        expect(self.page.locator("#link")).to_have_text("live")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def admin(port: int, **fields: object) -> dict[str, object]:
    keys = [{"name": "admin", "key": KEY, "role": "admin"}]
    return {"admin": {"admin_key": keys, "admin_listen": {"ip": "127.0.0.1", "port": port}, **fields}}


@pytest.fixture
def scene(browser: Browser, gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    port, origin_port, admin_port = ports.take(), ports.take(), ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"], deployment=admin(admin_port))
    gateway.write_routes("echo.yaml", stream_route("echo", origin_port, server_port=port))
    with contextlib.ExitStack() as stack:
        stack.enter_context(named_origin(tmp_path, origin_port, "origin"))
        page = stack.enter_context(tab(browser))
        yield Scene(gateway, page, port, origin_port, admin_port)


def test_a_session_is_seen_killed_and_its_close_told(scene: Scene) -> None:
    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "origin"
        scene.visit("sessions")
        row = scene.page.locator("tbody tr")
        expect(row).to_contain_text("echo")
        expect(row).to_contain_text(f"127.0.0.1:{scene.origin_port}")

        scene.page.get_by_role("button", name="Kill the session of").click()
        scene.page.get_by_role("button", name="Kill it").click()

        assert visitor.is_over()
        expect(row).to_have_count(0)
        scene.page.goto(f"{scene.url}/ui/#closes")
        expect(scene.page.locator("tbody tr").first).to_contain_text("killed")
    assert [line["reason"] for line in scene.gateway.access_lines()] == ["killed"]


def test_an_edit_that_is_wrong_is_an_alert_with_file_and_line_until_it_is_mended(scene: Scene) -> None:
    with scene.gateway.running():
        scene.visit("routes")
        expect(scene.page.locator("tbody tr")).to_contain_text("routes.d/echo.yaml:")

        scene.gateway.write_routes("more.yaml", {"id": "more", "server_prot": 1})
        alert = scene.page.get_by_role("alert")
        expect(alert).to_contain_text(re.compile(r"routes\.d/more\.yaml:\d+.*server_prot"))

        scene.gateway.write_routes("more.yaml", stream_route("more", scene.origin_port, server_port=1))
        expect(alert).to_be_empty()
        expect(scene.page.locator("tbody tr")).to_have_count(2)


def test_the_explanation_is_the_gateways_own(scene: Scene) -> None:
    with scene.gateway.running():
        scene.visit(f"explain?remote_addr=127.0.0.9&server_port={scene.port}")
        expect(scene.page.locator(".verdict")).to_have_text("Route echo takes this client.")
        expect(scene.page.locator(".steps")).to_contain_text(f"Accepted by tcp 127.0.0.1:{scene.port}")

        scene.page.get_by_label("Client's address").fill("not an address")
        scene.page.get_by_role("button", name="Explain").click()
        expect(scene.page.locator(".answer .warn")).to_contain_text("address")


def test_certificates_are_shown_with_their_end(scene: Scene) -> None:
    scene.gateway.write_routes("ssl.yaml", ssls=[ssl_object(issue("a.test"), "a.test", id="a")])
    with scene.gateway.running():
        scene.visit("certificates")

        row = scene.page.locator("tbody tr")
        expect(row).to_contain_text("a.test")
        expect(row).to_contain_text(re.compile(r"\d+ days"))
        expect(row).to_contain_text("routes.d/ssl.yaml:")


def test_words_in_files_never_become_markup(scene: Scene) -> None:
    hostile = {"name": HOSTILE, "desc": HOSTILE, "labels": {"a": HOSTILE.replace(" ", "")}}
    route = stream_route("echo", scene.origin_port, server_port=scene.port)
    scene.gateway.write_routes("echo.yaml", {**route, **hostile})
    with scene.gateway.running():
        scene.visit("routes")

        expect(scene.page.locator("tbody tr")).to_contain_text(HOSTILE)
        assert scene.page.locator("main img").count() == 0
        assert "owned" not in scene.page.title()


def test_it_goes_on_after_the_gateway_was_restarted(scene: Scene) -> None:
    with scene.gateway.running():
        scene.visit("sessions")
    expect(scene.page.locator("#link")).to_have_text("the gateway does not answer")

    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "origin"
        expect(scene.page.locator("#link")).to_have_text("live", timeout=40_000)
        expect(scene.page.locator("tbody tr")).to_have_count(1)


def test_another_application_may_stand_there_instead(scene: Scene, tmp_path: Path) -> None:
    build = tmp_path / "dashboard"
    build.mkdir()
    (build / "index.html").write_text("<!doctype html><title>dashboard</title>")
    port = [f"127.0.0.1:{scene.port}"]
    scene.gateway.write_settings(
        port, deployment=admin(scene.admin_port), streamgw={"admin": {"ui_dir": str(build)}}
    )
    with scene.gateway.running():
        for path in ("/ui", "/ui/", "/ui/stream_routes/detail/1"):
            scene.page.goto(scene.url + path)
            assert scene.page.title() == "dashboard"


def test_it_can_be_switched_off(scene: Scene) -> None:
    settings = admin(scene.admin_port, enable_admin_ui=False)
    scene.gateway.write_settings([f"127.0.0.1:{scene.port}"], deployment=settings)
    with scene.gateway.running():
        answer = scene.page.goto(f"{scene.url}/ui/")

        assert answer is not None
        assert answer.status in {401, 404}


def test_top_asks_the_gateway_of_the_settings(scene: Scene) -> None:
    with scene.gateway.running(), Visitor(scene.port) as visitor:
        assert visitor.greeting() == "origin"

        printed = scene.gateway.cli("top", "--once", "-d", "2")

    assert printed.splitlines()[0].rstrip().endswith("  live")
    assert "1 of 1 session" in printed
    assert f"127.0.0.1:{scene.origin_port}" in printed


def test_top_without_an_admin_api_asks_the_control_api(scene: Scene) -> None:
    scene.gateway.write_settings([f"127.0.0.1:{scene.port}"])
    with scene.gateway.running():
        printed = scene.gateway.cli("top", "--once", "-d", "0.2")

    assert "no live feed: no Admin API" in printed
    assert "0 of 0 sessions" in printed
