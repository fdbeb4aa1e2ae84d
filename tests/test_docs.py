"""README.md, CONTRIBUTING.md and docs/: what they tell people to type works, and what they list is what there is.

docs/testing.md says how a page is read. Pages run in a scratch copy of the repository's conf/ and routes.d/, inside a
private network, so that ports are those of the page.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from streamgw.cli.commands import COMMANDS
from streamgw.cli.failure import EXIT_CODES
from streamgw.config.endpoints import AdminSpec
from streamgw.config.listen import Entry
from streamgw.config.schema import PluginMetadataSpec, ServiceSpec, SSLSpec, StreamRouteSpec, UpstreamSpec
from streamgw.config.settings_schema import ConfigSpec, DeploymentSpec
from streamgw.core import access_log
from streamgw.core.errors import Fault, Reason
from streamgw.core.model import Address, Attempt, ClientCertificate, Facts, Outcome
from streamgw.core.udp_sessions import Drop
from tests.support.child import run
from tests.support.namespace import private_network
from tests.support.page import Reader, Step, is_like, steps_of
from tests.support.servers import Prefix, mariadb

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")])
# A session with everything that a log line can tell, which no real one has: TLS is over TCP.
OUTCOME = Outcome(
    session_id="1",
    facts=Facts(
        *("udp", "udp *:9100", Address("192.0.2.7", 1), Address("127.0.0.1", 9100)),
        server_name="a.test",
        client_certificate=ClientCertificate("CN=alice", (), "00", "1"),
    ),
    peer=Address("192.0.2.1", 2),
    reason=Reason.CONNECT_FAILED,
    fault=Fault.UPSTREAM,
    phase="connect",
    started_at=0.0,
    duration_s=1.0,
    connect_s=None,
    bytes_up=0,
    bytes_down=0,
    tls_version="TLSv1.3",
    attempts=(Attempt(Address("127.0.0.1", 1995), 0.1, "connection refused"),),
)

ACTIVATE = ". .venv/bin/activate"


_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def test_a_page_is_read_as_documented() -> None:
    page = (
        "# Title\n\n```sh\nmake run\n# a comment\n```\n\n```console\n$ one\nprints\nthis\n$ two\n```\n\n"
        "```yaml\n# routes.d/a.yaml\nx: 1\n```\n\n```yaml\nx: 1\n```\n\n```text\n$ not run\n```\n"
    )

    assert list(steps_of("P.md", page)) == [
        Step("P.md", 4, "run", "make run"),
        Step("P.md", 9, "run", "one", "prints\nthis\n"),
        Step("P.md", 12, "run", "two"),
        Step("P.md", 16, "write", "routes.d/a.yaml", "# routes.d/a.yaml\nx: 1\n"),
    ]


def test_an_ellipsis_stands_for_anything() -> None:
    assert is_like("applied in 84 ms\n", "applied in … ms")
    assert not is_like("applied in 84 s\n", "applied in … ms")


class Newcomer(Reader):
    """Somebody in a fresh checkout. `make` targets are looked up rather than run: `make test` runs this very test.

    Args:
      page: README.md is read first: what is in `.venv` is out of reach until it has been activated.
    """

    def __init__(self, directory: Path, page: str, prefix: Prefix, stack: contextlib.ExitStack) -> None:
        checkout = directory / "checkout"
        for name in ("conf", "routes.d"):
            shutil.copytree(ROOT / name, checkout / name)
        (checkout / ".venv").symlink_to(sys.prefix)
        super().__init__(checkout, logs=directory, prefix=prefix, stack=stack)
        self.path = [part for part in self.path if not part.startswith(sys.prefix)]
        if page != "README.md":
            self._activate()

    def follow(self, step: Step) -> None:
        """As a reader does, with what only a newcomer has to do."""
        if step.what == ACTIVATE:
            assert (self.directory / ".venv/bin/activate").exists(), step
            self._activate()
        elif step.what.split()[0] == "make":
            target = step.what.split()[1:] or ["help"]
            commands = run(["make", "--no-print-directory", "-n", *target], cwd=ROOT).stdout.splitlines()
            if target == ["run"]:
                assert commands[-1].endswith(".venv/bin/streamgw demo"), step
                self.start([str(self.directory / ".venv/bin/streamgw"), "demo"])
        else:
            super().follow(step)

    def _activate(self) -> None:
        self.path = [str(self.directory / ".venv/bin"), *self.path]


@contextlib.contextmanager
def nothing(_: Path, __: int, *, prefix: Prefix = ()) -> Iterator[None]:
    """What most pages need beside the gateway."""
    yield


# What a page takes for granted, and on which port.
TAKEN_FOR_GRANTED: dict[str, tuple[Callable[..., contextlib.AbstractContextManager[object]], int]] = {
    "README.md": (mariadb, 3306),
}

# The examples run in their own directories: tests/e2e/test_examples.py.
EXECUTED = [
    page for page in PAGES if "examples" not in page.parts and any(steps_of(page.name, page.read_text()))
]


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    name = str(page.relative_to(ROOT))
    server, port = TAKEN_FOR_GRANTED.get(name, (nothing, 0))

    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(private_network(tmp_path))
        stack.enter_context(server(tmp_path, port, prefix=prefix))
        reader = Newcomer(tmp_path, name, prefix, stack)
        for step in steps_of(name, page.read_text()):
            reader.follow(step)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [found["target"] for found in _LINK.finditer(page.read_text())]
    local = [target for target in targets if not target.startswith(("http:", "https:"))]

    broken = [target for target in local if not _exists(page, target)]

    assert broken == []


def _exists(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = (page.parent / name) if name else page
    if not path.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    return not anchor or anchor in anchors


def test_the_tree_in_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    tree = text.partition("## Tree")[2].partition("```\n")[2].partition("```")[0]
    listed = set(_paths_of(tree.splitlines()))
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "streamgw").rglob("*.py")}
    with_code = {name for name in modules if not name.endswith("__init__.py")}

    assert with_code - listed == set(), "modules that the tree does not name"
    assert listed - modules == set(), "names in the tree that are no modules"


def _paths_of(lines: list[str]) -> Iterator[str]:
    """`├── core/` and `│   ├── wire/cursor.py  what for` below it → `streamgw/core/wire/cursor.py`."""
    directory = ""
    for line in lines[1:]:
        names = [name.strip(",") for name in re.sub(r"^[│├└─ ]+", "", line).split()]
        if not line.startswith(("│   ", "    ")):
            directory = names[0] if names[0].endswith("/") else ""
        yield from (f"streamgw/{directory}{name}" for name in names if name.endswith(".py"))


@pytest.mark.parametrize("page", ["docs/glossary.md", "docs/life-of-a-connection.md"])
def test_the_reasons_are_those_of_the_code(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / page).read_text(), re.MULTILINE)
    faults = {str(fault) for fault in Fault} | {"client or upstream", "the side that did it"}
    reasons = [reason for reason, fault in rows if fault in faults]

    assert sorted(reasons) == sorted(map(str, Reason))


@pytest.mark.parametrize("page", ["docs/udp.md", "docs/life-of-a-udp-session.md"])
def test_the_reasons_for_dropped_datagrams_are_those_of_the_code(page: str) -> None:
    table = (ROOT / page).read_text().partition("## Dropped datagrams")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)

    assert sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == sorted(Drop)


def test_the_index_of_decisions_lists_every_page() -> None:
    directory = ROOT / "docs/decisions"
    titles = {
        page.name: page.read_text().partition("\n")[0].removeprefix("# ")
        for page in sorted(directory.glob("0*.md"))
    }
    index = (directory / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d+)\]\((\S+)\) \| (.+?) \|", index, re.MULTILINE)

    assert {file: f"{number}. {title}" for number, file, title in rows} == titles


@pytest.mark.parametrize("page", sorted((ROOT / "docs/decisions").glob("0*.md")), ids=lambda page: page.stem)
def test_a_decision_has_its_four_parts(page: Path) -> None:
    assert re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE) == [
        "Context",
        "Options",
        "Decision",
        "Consequences",
    ]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("### `stream_routes[]`", StreamRouteSpec),
        ("### `upstreams[]`", UpstreamSpec),
        ("### `services[]`", ServiceSpec),
        ("### `ssls[]`", SSLSpec),
    ],
)
def test_every_field_of_an_object_is_documented(heading: str, kind: type[attrs.AttrsInstance]) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    section = text.partition(heading)[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    common = PluginMetadataSpec.common()

    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    assert documented == {field.name for field in attrs.fields(kind)} - common


def leaves(spec: attrs.AttrsInstance, path: str = "") -> Iterator[tuple[str, object]]:
    """Every setting with its dotted name and its default: sections are walked, anything else is a setting."""
    for field in attrs.fields(type(spec)):
        value = getattr(spec, field.name)
        name = f"{path}{field.name}"
        if attrs.has(type(value)):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def shown(default: object) -> str:
    """A default as the table shows it; empty for what needs words."""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, int | float) and default < 1e5 else str(default or "")


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    section = text.partition("### Settings")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE)]

    documented = {name: row[2].strip("`") for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}

    sections = attrs.evolve(ConfigSpec(), deployment=DeploymentSpec(admin=AdminSpec()))
    expected = dict(leaves(sections))
    assert documented.keys() == expected.keys()
    wrong = {
        name: documented[name]
        for name, default in expected.items()
        if isinstance(default, bool | int | float) and documented[name] != shown(default)
    }
    assert wrong == {}, "defaults that are not the code's"


def test_every_option_of_a_listener_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    section = text.partition("### Listeners")[2].partition("### Settings")[0].partition("| option |")[2]
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)

    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    assert documented == {field.name for field in attrs.fields(Entry)}


def test_the_command_line_page_lists_every_command_and_exit_code() -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    commands = set(re.findall(r"^\| `streamgw (\w+)` \|", text, re.MULTILINE))
    codes = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)

    assert commands == set(COMMANDS)
    assert {int(code): meaning.replace("`", "") for code, meaning in codes} == EXIT_CODES


def test_the_access_log_page_lists_every_key_variable_and_status() -> None:
    text = (ROOT / "docs/access-log.md").read_text()
    in_json, _, formats = text.partition("## Your own format")
    cells = re.findall(r"^\| (`[^|]+) \|", in_json, re.MULTILINE)
    statuses = re.findall(r"^\| (\d+) \| (.*) \|$", formats, re.MULTILINE)

    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == list(
        json.loads(access_log.format_json(OUTCOME))
    )
    assert set(re.findall(r"`\$(\w+)`", formats)) == {*access_log._VARIABLES, "hostname"}
    assert {
        reason: int(status) for status, reasons in statuses for reason in re.findall(r"`(\w+)`", reasons)
    } == {str(reason): status for reason, status in access_log.STATUS_BY_REASON.items()}
