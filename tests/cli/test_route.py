"""streamgw route"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import ROUTES, Desk


def written(result_output: str) -> str:
    return Path(result_output.strip()).read_text()


def test_a_route_is_added_in_a_file_of_its_own(desk: Desk) -> None:
    result = desk.run("route", "add", "--sni", "a.test.com", "--node", "127.0.0.1:5991")

    assert result.exit_code == 0
    assert result.stdout == "routes.d/stream_routes/sni-a.test.com.yaml\n"
    assert written(result.stdout) == (
        "stream_routes:\n"
        "  - id: sni-a.test.com\n"
        "    sni: a.test.com\n"
        "    upstream:\n"
        "      nodes:\n"
        '        "127.0.0.1:5991": 1\n'
    )
    assert desk.hand_written.read_text() == ROUTES


def test_every_option_has_its_field(desk: Desk) -> None:
    result = desk.run(
        *("route", "add", "--id", "all", "--name", "All", "--desc", "every option", "--label", "team=db"),
        *("--label", "tier=", "--sni", "a.test", "--sni", "*.b.test", "--server-port", "9100-9101"),
        *(
            "--server-addr",
            "127.0.0.0/8",
            "--remote-addr",
            "10.0.0.0/8",
            "--remote-addr",
            "::1",
            "--priority",
            "-5",
        ),
        *("--node", "[::1]:5=3", "--node", "db:3306", "--type", "roundrobin", "--retries", "1"),
    )

    assert "expected text without spaces, 1 to 256 characters" in result.stderr, "a label needs a value"
    result = desk.run(
        *("route", "add", "--id", "all", "--name", "All", "--desc", "every option", "--label", "team=db"),
        *("--sni", "a.test", "--sni", "*.b.test", "--server-port", "9100-9101"),
        *(
            "--server-addr",
            "127.0.0.0/8",
            "--remote-addr",
            "10.0.0.0/8",
            "--remote-addr",
            "::1",
            "--priority",
            "-5",
        ),
        *("--node", "[::1]:5=3", "--node", "db:3306", "--type", "roundrobin", "--retries", "1"),
    )

    assert yaml.safe_load(written(result.stdout)) == {
        "stream_routes": [
            {
                "id": "all",
                "name": "All",
                "desc": "every option",
                "labels": {"team": "db"},
                "priority": -5,
                "snis": ["a.test", "*.b.test"],
                "remote_addrs": ["10.0.0.0/8", "::1"],
                "server_addr": "127.0.0.0/8",
                "server_ports": ["9100-9101"],
                "upstream": {"nodes": {"[::1]:5": 3, "db:3306": 1}, "type": "roundrobin", "retries": 1},
            }
        ]
    }
    assert "warning: routes.d/stream_routes/all.yaml:" in result.stderr


def test_a_route_can_ask_for_tls_on_both_sides(desk: Desk) -> None:
    desk.config.write_text(
        "apisix: {stream_proxy: {tcp: [{addr: '127.0.0.1:9100', tls: true, tls_passthrough: true}]}}"
    )
    desk.hand_written.write_text("{}")

    untouched = desk.run(
        "route", "add", "--sni", "a.test", "--alpn", "h2", "--tls-passthrough", "--node", "a:1"
    )
    onward = desk.run("route", "add", "--sni", "b.test", "--node", "b:1", "--scheme", "tls", "--tls-verify")

    assert untouched.exit_code == onward.exit_code == 0
    (route,) = yaml.safe_load(written(untouched.stdout))["stream_routes"]
    assert (route["alpn"], route["tls_passthrough"]) == (["h2"], True)
    (route,) = yaml.safe_load(written(onward.stdout))["stream_routes"]
    assert route["upstream"] == {"nodes": {"b:1": 1}, "scheme": "tls", "tls": {"verify": True}}
    listed = desk.run("route", "list").stdout
    assert "sni a.test, alpn h2, TLS untouched  a:1" in listed
    assert "tls b:1" in listed


def test_a_route_can_say_how_its_udp_sessions_live(desk: Desk) -> None:
    desk.config.write_text("apisix: {stream_proxy: {udp: ['127.0.0.1:9200']}}")
    desk.hand_written.write_text("{}")

    result = desk.run(
        *("route", "add", "dns", "--server-port", "9200", "--node", "a:53", "--udp-idle-timeout", "5"),
        *("--udp-responses", "0", "--udp-requests", "2", "--udp-amplification", "1.5"),
    )

    (route,) = yaml.safe_load(written(result.stdout))["stream_routes"]
    assert route["udp"] == {"idle_timeout": 5, "responses": 0, "requests": 2, "amplification": 1.5}
    assert "    udp:\n      idle_timeout: 5\n" in written(result.stdout)
    assert "udp.requests: does nothing with 'responses: 0'" in result.stderr


def test_an_id_is_made_from_what_the_route_matches(desk: Desk) -> None:
    made = [
        (["--server-port", "9100"], "port-9100"),
        (["--server-port", "9100", "--remote-addr", "::1"], "port-9100-from-1"),
        (["--server-port", "9100"], "port-9100-2"),
        (["--server-port", "9100", "--server-port", "9101"], "port-9100-3"),
        (["--server-addr", "127.0.0.10"], "at-127.0.0.10"),
        (["--remote-addr", "10.0.0.0/8"], "from-10.0.0.0-8"),
        (["--sni", "*.Test.com", "--server-port", "9100"], "sni-any.test.com-port-9100"),
        (["--sni", "a" * 63 + ".test"], "sni-" + "a" * 56),
        ([], "default"),
    ]

    for options, id_ in made:
        result = desk.run("route", "add", "--upstream-id", "cache", *options)
        assert result.stdout == f"routes.d/stream_routes/{id_}.yaml\n"


def test_a_route_that_is_there_is_not_added_again(desk: Desk) -> None:
    result = desk.run("route", "add", "mysql", "--node", "a:1")

    assert result.exit_code == 73
    assert "routes.d/mine.yaml:3: stream_routes mysql is there already" in result.stderr


def test_what_would_be_wrong_is_not_written(desk: Desk) -> None:
    result = desk.run("route", "add", "x", "--node", "a:70000", "--server-port", "http")

    assert result.exit_code == 65
    assert (
        "error: routes.d/stream_routes/x.yaml:6:9 stream_routes[0].upstream.nodes['a:70000']: expected"
        in result.stderr
    )
    assert "stream_routes[0].server_port: expected an integer 1–65535, got 'http'" in result.stderr
    assert result.stderr.endswith("nothing was written\n")
    assert not list(desk.routes.glob("stream_routes/*"))


def test_while_another_file_is_broken_nothing_is_written(desk: Desk) -> None:
    (desk.routes / "broken.yaml").write_text("stream_routes: [")

    result = desk.run("route", "add", "x", "--node", "a:1")

    assert result.exit_code == 65
    assert "error: routes.d/broken.yaml:1:" in result.stderr
    assert not list(desk.routes.glob("stream_routes/*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "where to? Give a --node, --dns, an --upstream-id or a --service-id"),
        (["--node", "a:1", "--upstream-id", "1"], "--node and --dns exclude --upstream-id"),
        (["--dns", "a", "--upstream-id", "1"], "--node and --dns exclude --upstream-id"),
        (["--node", "a:1", "--dns", "a"], "--node and --dns exclude each other"),
        (
            ["--upstream-id", "1", "--retries", "0"],
            "--type, --key, --retries, --scheme and --tls-… of the upstream belong to --node or --dns",
        ),
        (["a", "--id", "b", "--node", "a:1"], "two ids: a and b"),
        (["--node", "a:1=x"], "'a:1=x': a weight is a number"),
        (["--node", "a:1", "--node", "a:1=2"], "a:1 is named twice"),
    ],
)
def test_wrong_usage(desk: Desk, options: list[str], said: str) -> None:
    result = desk.run("route", "add", *options)

    assert result.exit_code == 2
    assert said in result.stderr


def test_routes_are_listed_with_their_place(desk: Desk) -> None:
    (desk.routes / "z.yaml").write_text(
        "stream_routes:\n"
        "  - {id: off, status: 0, priority: 7, server_ports: [1, 2-3], service_id: s}\n"
        "  - {server_port: 5}\n"
        "services: [{id: s, upstream: {nodes: {}}}]\n"
    )

    lines = [line.split("  ") for line in desk.run("route", "list").stdout.splitlines()]

    cells = [[cell.strip() for cell in line if cell] for line in lines]
    assert cells == [
        ["ID", "MATCHES", "GOES TO", "PRIORITY", "STATUS", "FILE"],
        [
            "mysql",
            "server_addr 127.0.0.10, server_port 9101",
            "127.0.0.1:3306",
            "0",
            "enabled",
            "routes.d/mine.yaml:3",
        ],
        ["redis", "remote_addr 10.0.0.0/8", "upstream cache", "0", "enabled", "routes.d/mine.yaml:8"],
        ["off", "server_ports 1, 2-3", "service s", "7", "disabled", "routes.d/z.yaml:2"],
        ["z.yaml-2", "server_port 5", "nowhere", "0", "enabled", "routes.d/z.yaml:3"],
    ]


def test_a_route_without_conditions_takes_everything(desk: Desk) -> None:
    desk.hand_written.write_text("stream_routes: [{id: a, upstream_id: b}]\nupstreams: [{id: b, nodes: {}}]")

    assert "a   everything  upstream b" in desk.run("route", "list").stdout


def test_one_route(desk: Desk) -> None:
    shown = {
        output: desk.run("route", "get", "mysql", "-o", output).stdout for output in ("yaml", "json", "table")
    }

    data = yaml.safe_load(ROUTES)["stream_routes"][0]
    assert yaml.safe_load(shown["yaml"]) == json.loads(shown["json"]) == data
    assert 'upstream     {nodes: {"127.0.0.1:3306": 1}, type: roundrobin}' in shown["table"]
    assert "(routes.d/mine.yaml:3)" in shown["table"]


def test_switching_off_and_on_changes_one_line(desk: Desk) -> None:
    off = desk.run("route", "disable", "mysql")
    assert (off.exit_code, off.stdout) == (0, "routes.d/mine.yaml\n")
    disabled = ROUTES.replace("# the main one\n", "# the main one\n    status: 0\n")
    assert desk.hand_written.read_text() == disabled

    desk.run("route", "disable", "mysql")
    assert desk.hand_written.read_text() == disabled

    desk.run("route", "enable", "mysql")
    assert desk.hand_written.read_text() == disabled.replace("status: 0", "status: 1")
    desk.run("route", "enable", "redis")
    assert desk.hand_written.read_text() == disabled.replace("status: 0", "status: 1")


def test_a_removed_route_leaves_the_rest_of_the_file(desk: Desk) -> None:
    result = desk.run("route", "remove", "mysql")

    assert (result.exit_code, result.stdout) == (0, "removed from routes.d/mine.yaml\n")
    start, end = ROUTES.index("  - id: mysql"), ROUTES.index("  # the rest")
    assert desk.hand_written.read_text() == ROUTES[:start] + ROUTES[end:]


@pytest.mark.parametrize("command", ["get", "remove", "enable", "disable"])
def test_a_route_that_is_not_there(desk: Desk, command: str) -> None:
    result = desk.run("route", command, "nix")

    assert result.exit_code == 65
    assert result.stderr == "error: routes.d: no stream_routes nix\n"


def test_two_processes_that_add_routes_lose_none_and_share_none(desk: Desk) -> None:
    script = (
        "import sys\nfrom streamgw.cli.commands import commands\nsys.stdin.read(1)\n"
        "for number in range(10):\n"
        "    for arguments in (['--server-port', '9100'], ['shared-%d' % number]):\n"
        "        try:\n            commands(['route', 'add', '--upstream-id', 'cache', *arguments])\n"
        "        except SystemExit as end:\n            assert end.code in (0, 73), end.code\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("x")
        writer.stdin.flush()
    told = [path for writer in writers for path in writer.communicate(timeout=100)[0].split()]

    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(told) == len(set(told)) == 30, "each file was made by one of them"
    assert sorted(told) == sorted(
        str(path.relative_to(desk.directory)) for path in desk.routes.glob("*/*.yaml")
    )
    assert desk.run("check").exit_code == 0
