"""Waiting for the gateway, and listing what is partly broken."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections.abc import Mapping

import pytest

from streamgw.cli.objects import _ATTEMPTS, Target, change_object, slugs
from streamgw.config.store import Stale, Store
from tests.cli.conftest import Desk
from tests.support.certificates import document
from tests.support.key_places import MARK, PLACES
from tests.support.ports import Ports
from tests.support.status_endpoint import STATUS, serving


class SlowGateway:
    """Applies what stands in the directory, but only when it has been asked a few times."""

    def __init__(self, desk: Desk, *, after: int) -> None:
        self._desk = desk
        self._answers_left = after

    def answer(self) -> object:
        self._answers_left -= 1
        if self._answers_left > 0:
            return {**STATUS, "objects": {"stream_routes": {"mysql": "0123"}}}
        found = Store(self._desk.routes).objects("stream_routes")
        return {**STATUS, "objects": {"stream_routes": {item.key[1]: item.digest for item in found}}}


@pytest.mark.parametrize(
    "command",
    [
        ["add", "new", "--node", "a:1"],
        ["disable", "mysql"],
        ["remove", "mysql"],
    ],
)
def test_wait_returns_when_the_gateway_runs_it(desk: Desk, command: list[str]) -> None:
    with serving(SlowGateway(desk, after=3).answer) as url:
        result = desk.run("route", *command, "--wait", "--url", url)

    assert result.exit_code == 0
    assert re.fullmatch(r".*\.yaml\napplied in \d+ ms \(revision 3f2a9b0c…\)\n", result.stdout)


def test_wait_gives_up_and_says_why(desk: Desk) -> None:
    rejecting = copy.deepcopy(dict(STATUS))
    problem = {
        "file": "routes.d/a.yaml",
        "line": 3,
        "column": 5,
        "pointer": "",
        "message": "unknown field 'x'",
    }
    rejecting["config"] |= {"state": "rejected", "problems": [problem]}

    for answer, reason in ((STATUS, ""), (rejecting, "routes.d/a.yaml:3: unknown field 'x'")):
        with serving(lambda said=answer: said) as url:
            result = desk.run("route", "disable", "mysql", "--wait", "--timeout", "0.05", "--url", url)
        assert result.exit_code == 75
        assert "error: written, but not applied after 0.05 s" in result.stderr
        assert reason in result.stderr
    assert "status: 0" in desk.hand_written.read_text()


@pytest.mark.parametrize(("saves", "is_changed"), [(_ATTEMPTS - 1, True), (_ATTEMPTS, False)])
def test_what_somebody_else_has_written_meanwhile_is_kept_and_changed(
    desk: Desk, saves: int, is_changed: bool
) -> None:
    ports = iter(range(1, saves + 1))

    def disabled(data: Mapping[str, object]) -> Mapping[str, object]:
        for port in itertools.islice(ports, 1):
            text = desk.hand_written.read_text()
            desk.hand_written.write_text(re.sub(r"server_port: \d+", f"server_port: {port}", text))
        return {**data, "status": 0}

    target = Target(desk.config, desk.routes, wait=False, timeout_s=1.0, url=None)
    with contextlib.nullcontext() if is_changed else pytest.raises(Stale, match="nothing was written"):
        change_object(target, ("stream_routes", "mysql"), disabled)

    written = desk.hand_written.read_text()
    assert f"server_port: {saves}\n" in written
    assert ("status: 0" in written) == is_changed


def test_wait_needs_a_gateway(desk: Desk) -> None:
    with Ports() as ports:
        port = ports.take()
    desk.config.write_text(f"apisix: {{status: {{ip: 127.0.0.1, port: {port}}}}}")

    result = desk.run("route", "disable", "mysql", "--wait")

    assert result.exit_code == 69
    assert f"no gateway answers at http://127.0.0.1:{port}" in result.stderr


def test_what_can_be_read_is_listed_and_the_rest_is_an_error(desk: Desk) -> None:
    (desk.routes / "broken.yaml").write_text("stream_routes: [{id: a, x: 1}, {id: b")

    listed, got = desk.run("route", "list"), desk.run("route", "get", "nix")

    assert "mysql" in listed.stdout
    assert listed.exit_code == got.exit_code == 65
    assert "error: routes.d/broken.yaml:1:" in listed.stderr


@pytest.mark.parametrize("place", [place for place in PLACES if PLACES[place][0][0] != "services"])
def test_no_command_shows_a_key(place: str, desk: Desk) -> None:
    (collection, id_), data = PLACES[place]
    (desk.routes / "o.yaml").write_text(document(**{collection: [{"id": id_, **data}]}))
    group = {"stream_routes": "route", "upstreams": "upstream", "ssls": "ssl"}[collection]

    for output in ("yaml", "json", "table"):
        listed, got = (desk.run(group, *command, "-o", output) for command in (["list"], ["get", id_]))
        assert (listed.exit_code, got.exit_code) == (0, 0)
        assert MARK not in listed.output + got.output
        assert output == "table" or "BEGIN CERTIFICATE" in got.output


def test_names_of_files_made_of_words() -> None:
    assert next(slugs(["port-1", "from-::1"], otherwise="x")) == "port-1-from-1"
    assert next(slugs(["*"], otherwise="x")) == "x"
    assert [id_ for id_, _ in zip(slugs([".a/"], otherwise="x"), range(3), strict=False)] == [
        "a",
        "a-2",
        "a-3",
    ]
