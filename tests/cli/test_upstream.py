"""streamgw upstream"""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.cli.upstream import build_description, build_upstream, show_nodes
from tests.cli.conftest import Desk


def test_an_upstream_is_added_in_a_file_of_its_own(desk: Desk) -> None:
    result = desk.run(
        "upstream", "add", "--node", "10.0.0.5:3306=2", "--node", "10.0.0.6:3306", "--name", "databases"
    )

    assert (result.exit_code, result.stdout) == (0, "routes.d/upstreams/10.0.0.5-3306.yaml\n")
    assert Path(result.stdout.strip()).read_text() == (
        "upstreams:\n"
        "  - id: 10.0.0.5-3306\n"
        "    name: databases\n"
        "    nodes:\n"
        '      "10.0.0.5:3306": 2\n'
        '      "10.0.0.6:3306": 1\n'
    )
    assert desk.run("upstream", "add", "db", "--node", "[::1]:1").stdout == "routes.d/upstreams/db.yaml\n"


def test_an_upstream_needs_a_node(desk: Desk) -> None:
    result = desk.run("upstream", "add", "db")

    assert result.exit_code == 2
    assert "an upstream needs a --node" in result.stderr


def test_upstreams_are_listed_and_shown(desk: Desk) -> None:
    assert desk.run("upstream", "list").stdout.splitlines() == [
        "ID     NODES             NAME       FILE",
        "cache  127.0.0.1:6379=2  the cache  routes.d/mine.yaml:12",
    ]
    assert desk.run("upstream", "get", "cache").stdout.startswith(
        "id: cache\nname: the cache\nnodes:\n  - host: 127"
    )


def test_an_upstream_that_a_route_needs_stays(desk: Desk) -> None:
    before = desk.hand_written.read_text()

    result = desk.run("upstream", "remove", "cache")

    assert result.exit_code == 65
    assert "stream_routes[1].upstream_id: no upstream has the id 'cache'" in result.stderr
    assert desk.hand_written.read_text() == before


def test_an_upstream_that_nobody_needs_goes_with_its_file(desk: Desk) -> None:
    desk.run("upstream", "add", "db", "--node", "a:1")

    assert desk.run("upstream", "remove", "db").stdout == "removed routes.d/upstreams/db.yaml\n"
    assert not (desk.routes / "upstreams" / "db.yaml").exists()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({}, ""),
        ({"nodes": {"a:1": 1, "b:2": 0}}, "a:1, b:2=0"),
        ({"nodes": [{"host": "a", "port": 1}, {"host": "b", "port": 2, "weight": 3}]}, "a:1, b:2=3"),
    ],
)
def test_nodes_on_one_line(data: dict[str, object], shown: str) -> None:
    assert show_nodes(data) == shown


def test_only_what_is_given_is_written() -> None:
    assert build_upstream(("a:1",), None, None) == {"nodes": {"a:1": 1}}
    assert build_upstream(("a:1=0",), "roundrobin", 0) == {
        "nodes": {"a:1": 0},
        "type": "roundrobin",
        "retries": 0,
    }
    assert build_description(None, None, ()) == {}
    assert build_description("n", "", ("a=b=c",)) == {"name": "n", "desc": "", "labels": {"a": "b=c"}}
