"""Documents as written, and what becomes of them: `tests/config/golden/*.yaml`.

A case is one or more files, a line of dashes, and the compiled result or the problems. `# listeners: …` in its first lines
says what is listened on, `=== name` begins a further file. To write the results anew after a wanted change, and then
read the difference: `STREAMGW_GOLDEN=write pytest tests/config/test_compile_golden.py`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from streamgw.config.compile import Compilation, Loader
from streamgw.config.documents import SourceFile
from streamgw.config.settings import load_settings
from streamgw.core.errors import ConfigError
from streamgw.core.model import Listener, Match, Revision, Upstream

CASES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))
DASHES = "-" * 100
ENVIRON = {"DB_HOST": "10.0.0.7", "DB_PORT": "3306"}


@attrs.frozen
class Case:
    """One golden file, taken apart. It is a directory that a Loader can read."""

    files: tuple[SourceFile, ...]
    listeners: tuple[Listener, ...]
    expected: str
    revision: Revision = Revision("0")

    def read(self) -> Case:
        return self


def read_case(text: str, directory: Path) -> Case:
    documents, _, expected = text.partition(f"{DASHES}\n")
    found = re.search(r"^# listeners: (.*)$", documents, re.MULTILINE)
    (directory / "config.yaml").write_text(
        f"apisix: {{stream_proxy: {{tcp: [{found.group(1) if found else 9100}]}}}}"
    )
    names = re.split(r"^=== (.*)\n", documents, flags=re.MULTILINE)
    pairs = zip(["routes.yaml", *names[1::2]], names[::2], strict=True)
    files = tuple(
        SourceFile(f"routes.d/{name}", text.encode(), hashlib.sha256(text.encode()).hexdigest(), name)
        for name, text in pairs
        if text
    )
    listeners = load_settings(directory / "config.yaml", environ={}).listeners
    return Case(files, listeners, expected)


def dump(compilation: Compilation) -> Iterator[str]:
    for route in compilation.snapshot.router.routes:
        title = f"route {route.id}" + (f" '{route.name}'" if route.name else "")
        yield f"{title} from {route.source}, priority {route.priority}"
        yield f"  matches {dump_match(route.match)}"
        if route.tls_passthrough:
            yield "  TLS is passed through where the listener leaves the choice"
        if route.service_id:
            yield f"  service {route.service_id}"
        yield f"  to {route.upstream.key if route.upstream else 'nowhere'}"
    for upstream in compilation.snapshot.upstreams.values():
        yield from dump_upstream(upstream)
    yield from (f"warning {warning}" for warning in compilation.warnings)


def dump_match(match: Match) -> str:
    ports = [f"{ports.first}-{ports.last}" for ports in match.server_ports]
    parts: Sequence[tuple[str, Sequence[object]]] = (
        ("client in", match.remote_addrs),
        ("server address in", match.server_addrs),
        ("server port in", ports),
        ("server name in", match.server_names),
        ("ALPN in", match.alpn),
    )
    said = [f"{what} {', '.join(map(str, values))}" for what, values in parts if values]
    return "; ".join(said) or "everybody"


def dump_upstream(upstream: Upstream) -> Iterator[str]:
    yield f"upstream {upstream.key}" + (f" '{upstream.name}'" if upstream.name else "")
    for node in upstream.nodes:
        yield f"  node {node.host} port {node.port}, weight {node.weight}, priority {node.priority}"
    retries = "every node once" if upstream.retries is None else f"{upstream.retries} more"
    limit = f"within {upstream.retry_timeout_s:g} s" if upstream.retry_timeout_s else "no matter how long"
    yield f"  {upstream.type}, tries {retries}, {limit}"
    yield f"  connect {upstream.timeouts.connect_s:g} s, idle {upstream.timeouts.idle_s:g} s"
    if upstream.tls:
        yield f"  TLS to '{upstream.tls.server_name}', {'verified' if upstream.tls.verify else 'not verified'}"
    yield f"  PROXY header {upstream.proxy_protocol or 'as the listener says'}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_document_compiles_to_what_the_golden_file_says(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    case = read_case(text, tmp_path)

    try:
        lines = list(dump(Loader(case, environ=ENVIRON).load(case.listeners)))
    except ConfigError as error:
        lines = [f"problem {problem}" for problem in error.problems]
    found = "".join(f"{line}\n" for line in lines)

    if os.environ.get("STREAMGW_GOLDEN") == "write":
        path.write_text(text.partition(DASHES)[0] + DASHES + "\n" + found)
        pytest.skip("written anew: read the difference")
    assert found == case.expected


def test_there_are_cases() -> None:
    assert len(CASES) >= 20
