"""The page at /ui/, in a browser. The gateway is a fake where a test has to say what happens; see test_ui_gateway too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import TIMEOUT_MS, chromium, tab
from tests.support.child import wait_until
from tests.support.fake_gateway_process import FakeGateway, fake_gateway
from tests.support.ports import Ports

pytestmark = [pytest.mark.slow, pytest.mark.servers]

HOSTILE = "<img src=x onerror=\"document.title='owned'\">'\"&amp;"
VIEWS = ("overview", "sessions", "closes", "routes", "explain", "certificates", "configuration")
ROUTES: list[dict[str, Any]] = [
    {"id": "mysql", "server_port": 9100, "remote_addr": "10.0.0.0/8", "upstream_id": "db"},
    {"id": "redis", "server_port": 9101, "upstream": {"nodes": {"127.0.0.1:6379": 1}}},
]
_NAMELESS = re.compile(
    r"^ *- (?:button|link|searchbox|textbox|combobox|region|table)(?![^:\n]*\").*", re.MULTILINE
)

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with tab(browser) as page:
        yield page


@pytest.fixture
def fake(tmp_path: Path, ports: Ports) -> Iterator[FakeGateway]:
    with fake_gateway(tmp_path, ports.take()) as gateway:
        yield gateway


def visit(page: Page, gateway: FakeGateway, view: str = "overview") -> None:
    """Open a view, and wait until the feed is there: what happens from now on is seen."""
    page.goto(f"{gateway.page}#{view}")
    expect(page.locator("#link")).to_have_text("live")


# What is live


def test_sessions_come_and_go_without_a_reload_of_the_page(page: Page, fake: FakeGateway) -> None:
    visit(page, fake, "sessions")
    rows = page.locator("tbody tr")

    fake.do("open", 3)
    expect(rows).to_have_count(3)
    (first, *_) = fake.do("open", 1, route="redis", phase="connect", node="")["sessions"]
    expect(rows).to_have_count(4)
    fake.do("close", first)

    expect(rows).to_have_count(3)
    expect(page.locator(".toolbar .note")).to_have_text("3 sessions")


def test_a_rate_is_what_flowed_between_two_looks(page: Page, fake: FakeGateway) -> None:
    (id_,) = fake.do("open", 1, bytes_up=0, bytes_down=0)["sessions"]
    visit(page, fake, "sessions")
    rate = page.locator("tbody tr td:nth-child(9)")
    expect(rate).to_have_text("–")

    def is_shown() -> bool:
        fake.do("move", id_, 1 << 16, 9 << 16)
        return re.search(r"\d [KMG]iB/s", rate.inner_text()) is not None

    # It flows until somebody has seen it: the next look would say that nothing does.
    wait_until(is_shown, what="a rate")


def test_a_close_shows_its_reason_and_whose_fault_it_was(page: Page, fake: FakeGateway) -> None:
    (id_,) = fake.do("open")["sessions"]
    visit(page, fake, "closes")

    fake.do("close", id_, "connect_failed", "upstream", "127.0.0.1:3306: connection refused")

    cells = page.locator("tbody tr").first.locator("td")
    expect(cells.nth(1)).to_have_text("connect_failed")
    expect(cells.nth(2)).to_have_text("upstream")
    expect(cells.last).to_have_text("127.0.0.1:3306: connection refused")


def test_the_overview_says_how_much_and_where(page: Page, fake: FakeGateway) -> None:
    ids = fake.do("open", 5)["sessions"]
    fake.do("close", ids[0], "no_route", "client")
    visit(page, fake)

    expect(page.get_by_role("region", name="Sessions", exact=True)).to_contain_text("4")
    expect(page.get_by_role("region", name="Listeners").locator("tbody tr").first).to_contain_text(
        "tcp *:9100"
    )
    expect(page.get_by_role("region", name="Nodes in use").locator("tbody tr").first).to_contain_text(
        "127.0.0.1:3306"
    )
    expect(page.get_by_role("region", name="How sessions ended")).to_contain_text("no_route")


def test_the_health_of_nodes_is_known_at_once_and_follows_the_feed(page: Page, fake: FakeGateway) -> None:
    fake.do("set_health", **{"127.0.0.1:3306": "unhealthy"})
    visit(page, fake)
    node = page.get_by_role("region", name="Nodes in use").locator("tbody tr")
    expect(node).to_contain_text("unhealthy")

    fake.do("tell", {"kind": "health", "upstream": "db", "node": "127.0.0.1:3306", "status": "healthy"})

    expect(node.locator("td").nth(1)).to_have_text("healthy")


def test_a_pause_holds_the_list_still(page: Page, fake: FakeGateway) -> None:
    fake.do("open", 2)
    visit(page, fake, "sessions")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)

    page.get_by_role("button", name="Pause").click()
    fake.do("open", 5)
    expect(page.locator("#count-sessions")).to_have_text("7")
    assert rows.count() == 2

    page.get_by_role("button", name="Resume").click()
    expect(rows).to_have_count(7)


# Finding, sorting, killing


def test_a_field_in_the_filter_is_asked_of_the_gateway_and_words_are_looked_for_here(
    page: Page, fake: FakeGateway
) -> None:
    fake.do("open", 3)
    fake.do("open", 2, route="redis", server_name="a.test")
    visit(page, fake, "sessions")
    rows = page.locator("tbody tr")
    box = page.get_by_role("searchbox", name="Filter sessions")

    box.fill("route:redis")
    expect(rows).to_have_count(2)
    box.fill('listener:"tcp *:9100" 10.0.0.5')
    expect(rows).to_have_count(1)
    box.fill("")
    expect(rows).to_have_count(5)


def test_columns_sort_both_ways(page: Page, fake: FakeGateway) -> None:
    fake.do("open", 3)
    visit(page, fake, "sessions")
    clients = page.locator("tbody tr td:first-child")

    page.get_by_role("button", name="Down", exact=True).click()
    expect(clients).to_have_text([re.compile(rf"^10\.0\.0\.{last}:") for last in (3, 2, 1)])
    page.get_by_role("button", name="Down", exact=True).click()
    expect(clients).to_have_text([re.compile(rf"^10\.0\.0\.{last}:") for last in (1, 2, 3)])


def test_a_session_is_killed_only_after_a_second_yes(page: Page, fake: FakeGateway) -> None:
    fake.do("open", 2)
    visit(page, fake, "sessions")
    button = page.get_by_role("button", name="Kill the session of 10.0.0.1:")

    button.click()
    page.get_by_role("button", name="Keep it").click()
    assert fake.do("open", 0)["killed"] == []

    button.click()
    page.get_by_role("button", name="Kill it").click()

    expect(page.locator("#toast")).to_contain_text("is killed")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert len(fake.do("open", 0)["killed"]) == 1


def test_killing_works_with_the_keyboard_alone(page: Page, fake: FakeGateway) -> None:
    fake.do("open", 1)
    visit(page, fake, "sessions")
    expect(page.locator("tbody tr")).to_have_count(1)
    button = page.get_by_role("button", name="Kill the session of")

    page.keyboard.press("/")
    for _ in range(30):
        if button.evaluate("node => node === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect(page.locator("tbody tr")).to_have_count(0)


# Routes, explanations, configuration


def test_routes_stand_in_the_order_in_which_they_are_asked_with_file_and_line(
    page: Page, fake: FakeGateway
) -> None:
    fake.do("set_objects", stream_routes=ROUTES, upstreams=[{"id": "db", "nodes": {"127.0.0.1:3306": 2}}])
    visit(page, fake, "routes")

    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("from 10.0.0.0/8")
    expect(rows.first).to_contain_text("upstream db: 127.0.0.1:3306 ×2")
    expect(rows.first).to_contain_text("routes.d/all.yaml:3")


def test_routes_follow_a_change(page: Page, fake: FakeGateway) -> None:
    fake.do("set_objects", stream_routes=ROUTES[:1])
    visit(page, fake, "routes")
    expect(page.locator("tbody tr")).to_have_count(1)

    fake.do("set_objects", stream_routes=ROUTES)
    fake.do("reload", "applied")

    expect(page.locator("tbody tr")).to_have_count(2)


def test_an_explanation_says_step_by_step_which_route_and_why(page: Page, fake: FakeGateway) -> None:
    fake.do("set_objects", stream_routes=ROUTES)
    visit(page, fake, "explain")

    page.get_by_label("Client's address").fill("10.1.2.3")
    page.get_by_role("combobox", name="Port", exact=True).fill("9101")
    page.get_by_role("button", name="Explain").click()

    steps = page.locator(".steps > li")
    expect(steps.nth(0)).to_contain_text("Accepted by tcp 127.0.0.1:9101")
    expect(steps.nth(1)).to_contain_text("server_port is 9100, not 9101")
    expect(steps.nth(2)).to_contain_text("Route redis wins (routes.d/all.yaml:11)")


def test_an_explanation_has_an_address_of_its_own(page: Page, fake: FakeGateway) -> None:
    visit(page, fake, "explain?remote_addr=10.1.2.3&server_port=4444")

    expect(page.locator(".verdict")).to_have_text("Nobody listens on 127.0.0.1:4444.")
    expect(page.get_by_role("combobox", name="Port", exact=True)).to_have_value("4444")


def test_what_the_gateway_does_not_understand_is_said_in_its_words(page: Page, fake: FakeGateway) -> None:
    visit(page, fake, "explain?server_port=http")

    expect(page.locator(".answer")).to_have_text("server_port is no port")


def test_a_session_leads_to_the_explanation_of_its_route(page: Page, fake: FakeGateway) -> None:
    fake.do("set_objects", stream_routes=ROUTES)
    fake.do("open", 1)
    visit(page, fake, "sessions")

    page.get_by_role("button", name="10.0.0.1:40001", exact=True).click()
    page.get_by_role("link", name="Explain its route").click()

    expect(page.locator(".verdict")).to_have_text("Route mysql takes this client.")


def test_a_rejected_change_is_an_alert_with_its_place_until_it_is_mended(
    page: Page, fake: FakeGateway
) -> None:
    visit(page, fake)

    fake.do("reload", "rejected", "unknown field: upstreamid")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("routes.d/mysql.yaml:7:3 stream_routes[0]: unknown field: upstreamid")
    expect(page.locator("#count-configuration")).to_have_text("1 wrong")

    fake.do("reload", "applied")
    expect(alert).to_be_empty()


def test_the_files_are_looked_at_again_on_request(page: Page, fake: FakeGateway) -> None:
    visit(page, fake, "configuration")

    page.get_by_role("button", name="Look at the files again").click()

    expect(page.locator("#toast")).to_have_text("The gateway looks at its files.")


def test_certificates_that_end_soon_come_first(page: Page, fake: FakeGateway) -> None:
    ends = {"late": "2999-01-01T00:00:00+00:00", "over": "2001-01-01T00:00:00+00:00"}
    served = [
        {"id": id_, "names": [f"*.{id_}.test"], "issuer": "CN=ca", "not_after": at}
        for id_, at in ends.items()
    ]
    fake.do("set_status", certificates=served)
    fake.do("set_objects", ssls=[{"id": id_} for id_ in ("off", *ends)])
    visit(page, fake, "certificates")

    rows = page.locator("tbody tr")
    expect(rows.first).to_contain_text("*.over.test")
    expect(rows.first).to_contain_text("expired")
    expect(rows.nth(1)).to_contain_text("late")
    expect(rows.last).to_contain_text("off")


# Keys


def test_it_asks_for_the_key_and_keeps_it_in_this_tab(browser: Browser, tmp_path: Path, ports: Ports) -> None:
    with fake_gateway(tmp_path, ports.take(), key="open sesame") as gateway, tab(browser) as page:
        page.goto(gateway.page)
        box = page.get_by_label("Admin key")

        box.fill("wrong")
        box.press("Enter")
        expect(page.locator("#key-why")).to_have_text("This key is not accepted.")
        box.fill("open sesame")
        box.press("Enter")
        expect(page.locator("#link")).to_have_text("live")

        page.reload()
        expect(page.locator("#link")).to_have_text("live")
        assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
        assert "sesame" not in page.url


def test_without_a_key_nobody_is_asked_for_one(page: Page, fake: FakeGateway) -> None:
    visit(page, fake)

    assert not page.locator("#key-dialog").is_visible()
    assert not page.locator("#key").is_visible()


# What goes wrong


def test_it_comes_back_after_a_restart_of_the_gateway(page: Page, tmp_path: Path, ports: Ports) -> None:
    port = ports.take()
    with fake_gateway(tmp_path, port) as gateway:
        gateway.do("open", 2)
        visit(page, gateway, "sessions")
        expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("#link")).to_have_text("the gateway does not answer")

    with fake_gateway(tmp_path, port) as gateway:
        gateway.do("set_status", pid=4712, uptime_s=1.0)
        expect(page.locator("#link")).to_have_text("live", timeout=40_000)
        expect(page.locator("tbody tr")).to_have_count(0)
        gateway.do("open", 1)
        expect(page.locator("tbody tr")).to_have_count(1)


def test_ten_thousand_sessions_make_no_endless_page(page: Page, fake: FakeGateway) -> None:
    fake.do("open", 10_000)
    visit(page, fake, "sessions")
    rows = page.locator("tbody tr")

    expect(page.locator(".toolbar .note")).to_contain_text("10,000 sessions: the oldest 1,000 are here")
    expect(rows).to_have_count(200)
    for _ in range(4):
        page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(1000)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()

    # A burst: every one of them is in the feed.
    fake.do("open", 3000)
    expect(page.locator("#count-sessions")).to_have_text("13,000")
    assert rows.count() == 1000


def test_names_from_files_and_clients_never_become_markup(page: Page, fake: FakeGateway) -> None:
    evil = {
        "id": HOSTILE,
        "name": HOSTILE,
        "desc": HOSTILE,
        "sni": HOSTILE,
        "service_id": HOSTILE,
        "server_port": 9100,
    }
    fake.do("set_objects", stream_routes=[evil], ssls=[{"id": HOSTILE, "sni": HOSTILE}])
    ids = fake.do(
        "open", 3, route=HOSTILE, server_name=HOSTILE, node=HOSTILE, listener=HOSTILE, upstream=HOSTILE
    )
    fake.do("reload", "rejected", HOSTILE)
    visit(page, fake)
    fake.do("close", ids["sessions"][0], HOSTILE, HOSTILE, HOSTILE)

    for view in (*VIEWS, f"explain?remote_addr={HOSTILE}&server_port=9100", f"sessions?filter={HOSTILE}"):
        page.goto(f"{fake.page}#{view}")
        expect(page.get_by_role("alert")).to_contain_text(HOSTILE)
        assert page.locator("img:not(.brand img)").count() == 0
    page.goto(f"{fake.page}#routes")
    expect(page.locator("tbody tr")).to_contain_text(HOSTILE)
    assert "owned" not in page.title()


# For everybody


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, fake: FakeGateway) -> None:
    def ground(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with tab(browser, dark=True) as page:
        visit(page, fake)
        dark = ground(page)
        button = page.get_by_role("button", name="Colours")
        button.click()
        light = ground(page)

        page.reload()

        assert dark != light
        assert ground(page) == light
        expect(page.get_by_role("button", name="Colours: light")).to_be_visible()


def test_everything_that_can_be_used_has_a_name(page: Page, fake: FakeGateway) -> None:
    fake.do("set_objects", stream_routes=ROUTES, ssls=[{"id": "a", "sni": "a.test"}])
    fake.do("open", 2)
    for view in VIEWS:
        visit(page, fake, view)
        expect(page.locator("main h1")).to_have_count(1)
        expect(page.locator(f"#view-{view}")).to_have_attribute("aria-current", "page")
        # As a screen reader has it: one line per element, its role and its name in quotes.
        nameless = _NAMELESS.findall(page.locator("body").aria_snapshot())
        assert nameless == [], view


def test_without_javascript_it_says_what_else_there_is(browser: Browser, fake: FakeGateway) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()

    page.goto(fake.page)

    assert "streamgw top" in page.inner_text("main")
    context.close()
