"""streamgw upstream"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from streamgw.cli.upstream import UpstreamOptions, build_description, file_reference, show_nodes
from tests.cli.conftest import Desk
from tests.support.certificates import document, issue


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


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (("--key", "remote_addr"), {"type": "chash", "key": "remote_addr"}),
        (
            ("--type", "chash", "--key", "$remote_addr$server_port"),
            {"type": "chash", "hash_on": "vars_combinations", "key": "$remote_addr$server_port"},
        ),
        (
            ("--key", "server_addr", "--hash-on", "vars"),
            {"type": "chash", "hash_on": "vars", "key": "server_addr"},
        ),
    ],
)
def test_clients_can_be_told_to_stay_with_their_node(
    desk: Desk, options: tuple[str, ...], written: dict[str, str]
) -> None:
    desk.run("upstream", "add", "cache-2", "--node", "10.0.0.5:6379", *options)
    desk.run("route", "add", "sticky", "--server-port", "9107", "--node", "10.0.0.5:6379", *options)

    shown = json.loads(desk.run("upstream", "get", "cache-2", "-o", "json").stdout)
    inline = json.loads(desk.run("route", "get", "sticky", "-o", "json").stdout)["upstream"]
    for found in (shown, inline):
        assert {name: found[name] for name in ("type", "hash_on", "key") if name in found} == written


def test_a_key_that_does_not_exist_is_refused(desk: Desk) -> None:
    result = desk.run("upstream", "add", "cache-2", "--node", "10.0.0.5:6379", "--key", "uri")

    assert result.exit_code == 65
    assert "'uri' does not exist at layer 4" in result.stderr


def test_an_upstream_needs_a_node(desk: Desk) -> None:
    result = desk.run("upstream", "add", "db")

    assert result.exit_code == 2
    assert "an upstream needs a --node or --dns" in result.stderr


def test_nodes_may_be_what_dns_has(desk: Desk) -> None:
    result = desk.run("upstream", "add", "--dns", "app.example:8080", "--type", "least_conn")
    assert (result.exit_code, result.stdout) == (0, "routes.d/upstreams/app.example-8080.yaml\n")
    assert Path(result.stdout.strip()).read_text() == (
        "upstreams:\n"
        "  - id: app.example-8080\n"
        "    discovery_type: dns\n"
        '    service_name: "app.example:8080"\n'
        "    type: least_conn\n"
    )

    desk.run("route", "add", "found", "--server-port", "9101", "--dns", "_mysql._tcp.db.example")
    inline = json.loads(desk.run("route", "get", "found", "-o", "json").stdout)["upstream"]
    assert inline == {"discovery_type": "dns", "service_name": "_mysql._tcp.db.example"}


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


def options(**given: Any) -> UpstreamOptions:
    nothing = UpstreamOptions(
        node=(),
        dns=None,
        balancer=None,
        key=None,
        hash_on=None,
        retries=None,
        scheme=None,
        tls_verify=False,
        tls_ca=None,
        tls_server_name=None,
        tls_alpn=(),
        tls_client_cert_id=None,
    )
    return attrs.evolve(nothing, **given)


def test_only_what_is_given_is_written() -> None:
    routes = Path("routes.d")

    assert options(node=("a:1",)).build("upstreams", routes) == {"nodes": {"a:1": 1}}
    assert options(node=("a:1=0",), balancer="roundrobin", retries=0, scheme="tcp").build(
        "upstreams", routes
    ) == {
        "nodes": {"a:1": 0},
        "type": "roundrobin",
        "retries": 0,
        "scheme": "tcp",
    }
    assert build_description(None, None, ()) == {}
    assert build_description("n", "", ("a=b=c",)) == {"name": "n", "desc": "", "labels": {"a": "b=c"}}


@pytest.mark.parametrize(
    ("given", "tls"),
    [
        ({"tls_verify": True}, {"verify": True}),
        ({"tls_ca": "ca.pem"}, {"verify": True, "ca_certs": "$file://../../ca.pem"}),
        ({"tls_ca": "system"}, {"verify": True, "ca_certs": "system"}),
        ({"tls_server_name": "db.test", "tls_alpn": ("h2",)}, {"server_name": "db.test", "alpn": ["h2"]}),
        ({"tls_client_cert_id": "me"}, {"client_cert_id": "me"}),
    ],
)
def test_whoever_says_anything_of_tls_means_tls(given: dict[str, object], tls: dict[str, object]) -> None:
    said = options(node=("a:1",), **given)

    assert said.besides_nodes
    assert said.build("upstreams", Path("routes.d")) == {"nodes": {"a:1": 1}, "scheme": "tls", "tls": tls}


def test_tls_without_more_is_allowed_and_warned_of(desk: Desk) -> None:
    result = desk.run("upstream", "add", "db", "--node", "a:1", "--scheme", "tls")

    assert result.exit_code == 0
    assert "the nodes' certificates are not verified" in result.stderr
    assert desk.run("upstream", "list", "-o", "json").stdout.count('"scheme": "tls"') == 1


def test_a_file_is_named_as_it_will_be_found(tmp_path: Path) -> None:
    assert file_reference("/etc/ssl/ca.pem", Path("routes.d/ssls")) == "$file:///etc/ssl/ca.pem"
    assert file_reference("certs/a.pem", Path("routes.d/ssls")) == "$file://../../certs/a.pem"


def test_the_key_shown_to_nodes_is_never_printed(desk: Desk) -> None:
    mine = issue("me.test")
    tls = {"client_cert": mine.cert, "client_key": mine.key}
    upstream = {"id": "db", "nodes": {"a:1": 1}, "scheme": "tls", "tls": tls}
    route = {"id": "inline", "upstream": {name: upstream[name] for name in ("nodes", "scheme", "tls")}}
    (desk.routes / "z.yaml").write_text(document(upstreams=[upstream], stream_routes=[route]))

    for command in (
        ["upstream", "get", "db"],
        ["upstream", "list"],
        ["route", "get", "inline"],
        ["route", "list"],
    ):
        for output in ("table", "json", "yaml"):
            result = desk.run(*command, "-o", output)
            assert result.exit_code == 0
            assert "PRIVATE KEY" not in result.output
