from pathlib import Path

import pytest
import trio

from streamgw.control.admin.app import build_app, serve_admin
from streamgw.control.admin.pages import OWN_PAGE, build_page_routes
from streamgw.core.model import Address
from tests.support.http import Reply, exchange

BROWSER = "Accept: text/html,application/xhtml+xml\r\n"


class Site:
    """The pages over real HTTP: what a client sends is not made tidy on the way."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._address: Address | None = None

    async def serve(self, directory: Path | None = None) -> None:
        app = build_app(build_page_routes(directory))
        self._address = await self._nursery.start(serve_admin, app, Address("127.0.0.1", 0))

    async def get(self, path: str, headers: str = "", method: str = "GET") -> Reply:
        assert self._address is not None, "serve first"
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n"
        return await exchange(self._address, head.encode())


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    return Site(nursery)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A build of a single-page application, with a secret beside it."""
    (tmp_path / "secret.txt").write_text("the secret")
    directory = tmp_path / "build"
    (directory / "assets").mkdir(parents=True)
    (directory / "index.html").write_text("<title>dashboard</title>")
    (directory / "logo.svg").write_text("<svg/>")
    (directory / "assets" / "index-BzK3_x9Q.js").write_text("run()")
    (directory / ".env").write_text("the secret")
    (directory / "out.txt").symlink_to(tmp_path / "secret.txt")
    (directory / "circle").symlink_to("circle")
    return directory


def header(reply: Reply, name: str) -> str:
    lines = (line.partition(": ") for line in reply.head.splitlines())
    return next((value for found, _, value in lines if found == name), "")


async def test_the_directory_is_reached_relatively(site: Site) -> None:
    await site.serve()

    reply = await site.get("/ui")

    assert (reply.status, header(reply, "location")) == (301, "ui/")


@pytest.mark.parametrize("name", sorted(path.name for path in OWN_PAGE.iterdir()))
async def test_our_own_page_is_made_of_files_with_their_types(site: Site, name: str) -> None:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    await site.serve()

    reply = await site.get(f"/ui/{name}")

    assert reply.status == 200
    assert reply.body == (OWN_PAGE / name).read_bytes()
    assert header(reply, "content-type").partition(";")[0] == kinds[Path(name).suffix]


async def test_our_own_page_loads_nothing_from_elsewhere_and_nobody_frames_it(site: Site) -> None:
    await site.serve()

    reply = await site.get("/ui/")

    policy = header(reply, "content-security-policy")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert header(reply, "x-content-type-options") == "nosniff"


async def test_what_did_not_change_is_not_sent_again(site: Site) -> None:
    await site.serve()
    first = await site.get("/ui/")

    again = await site.get("/ui/", f"If-None-Match: {header(first, 'etag')}\r\n")

    assert header(first, "cache-control") == "no-cache"
    assert (again.status, again.body) == (304, b"")
    assert "content-security-policy" in again.head


async def test_a_wrong_address_below_our_own_page_leads_back_to_it(site: Site) -> None:
    await site.serve()

    assert (await site.get("/ui/sessions", BROWSER)).body == (OWN_PAGE / "index.html").read_bytes()
    deep = await site.get("/ui/a/b/c", BROWSER)
    assert (deep.status, header(deep, "location")) == (302, "../../")


async def test_another_application_is_served_from_its_directory(site: Site, build: Path) -> None:
    await site.serve(build)

    page, logo = await site.get("/ui/"), await site.get("/ui/logo.svg")

    assert page.body == b"<title>dashboard</title>"
    assert (logo.body, header(logo, "content-type")) == (b"<svg/>", "image/svg+xml")
    assert "script-src" not in header(page, "content-security-policy")


@pytest.mark.parametrize(
    "path", ["/ui/stream_routes", "/ui/stream_routes/detail/7", "/ui/assets", "/ui/circle"]
)
async def test_its_own_addresses_can_be_reloaded(site: Site, build: Path, path: str) -> None:
    await site.serve(build)

    assert (await site.get(path)).body == b"<title>dashboard</title>"


async def test_ids_with_dots_are_addresses_too_where_a_browser_navigates(site: Site, build: Path) -> None:
    await site.serve(build)

    assert (await site.get("/ui/stream_routes/db.example", BROWSER)).body == b"<title>dashboard</title>"


async def test_a_missing_script_is_not_answered_with_the_page(site: Site, build: Path) -> None:
    await site.serve(build)

    reply = await site.get("/ui/assets/index-00000000.js", "Accept: */*\r\n")

    assert (reply.status, header(reply, "cache-control")) == (404, "no-cache")


async def test_what_is_named_by_its_content_is_kept_for_ever(site: Site, build: Path) -> None:
    await site.serve(build)

    script, logo = await site.get("/ui/assets/index-BzK3_x9Q.js"), await site.get("/ui/logo.svg")

    assert header(script, "cache-control") == "public, max-age=31536000, immutable"
    assert header(logo, "cache-control") == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "%2e%2e/secret.txt",
        "%2e%2e%2fsecret.txt",
        "assets/../../secret.txt",
        "..%5csecret.txt",
        "//etc/hostname",
        "%2fetc%2fhostname",
        "out.txt",
        ".env",
        "a%00.txt",
        "x" * 300 + ".txt",
    ],
)
async def test_nothing_outside_the_directory_is_served(site: Site, build: Path, path: str) -> None:
    await site.serve(build)

    reply = await site.get(f"/ui/{path}")

    assert b"secret" not in reply.body
    assert reply.status == 404 or reply.body == b"<title>dashboard</title>"


async def test_only_what_reads_is_allowed(site: Site, build: Path) -> None:
    await site.serve(build)

    head = await site.get("/ui/logo.svg", method="HEAD")

    assert (head.status, head.body, header(head, "content-length")) == (200, b"", "6")
    assert (await site.get("/ui/logo.svg", method="PUT")).status == 405


async def test_a_directory_that_is_not_there_yet_says_what_is_missing(site: Site, tmp_path: Path) -> None:
    await site.serve(tmp_path / "build")
    missing = await site.get("/ui/")

    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "index.html").write_text("there")

    assert (missing.status, b"has no index.html" in missing.body) == (404, True)
    assert (await site.get("/ui/")).body == b"there"
