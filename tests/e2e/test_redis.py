"""Redis behind the gateway."""

from __future__ import annotations

import pytest

from tests.support.child import find_program, run
from tests.support.gateway import Gateway, stream_route
from tests.support.ports import Ports
from tests.support.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_COMMANDS = 10_000


@pytest.fixture
def port(gateway: Gateway, ports: Ports, redis_server: Server) -> int:
    port = ports.take()
    gateway.write_settings([f"127.0.0.1:{port}"])
    gateway.write_routes("redis.yaml", stream_route("redis", redis_server.port))
    return port


def _redis_cli(port: int, *words: str, stdin: bytes = b"") -> str:
    redis_cli = find_program("redis-cli", package="redis-tools")
    return run([redis_cli, "-h", "127.0.0.1", "-p", str(port), *words], stdin=stdin).stdout.strip()


def _set_command(number: int) -> bytes:
    """One SET in the wire format (RESP), as --pipe wants it."""
    words = (b"SET", b"key:%d" % number, b"value %d" % number)
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def test_ten_thousand_pipelined_commands_are_all_answered(gateway: Gateway, port: int) -> None:
    commands = b"".join(map(_set_command, range(_COMMANDS)))

    with gateway.running():
        said = _redis_cli(port, "--pipe", stdin=commands)

        assert f"errors: 0, replies: {_COMMANDS}" in said
        assert _redis_cli(port, "DBSIZE") == str(_COMMANDS)
        assert _redis_cli(port, "GET", "key:9999") == "value 9999"


def test_a_value_of_eight_megabytes_survives_the_round_trip(gateway: Gateway, port: int) -> None:
    value = b"0123456789abcdef" * 524_288

    with gateway.running():
        _redis_cli(port, "-x", "SET", "large", stdin=value)

        assert _redis_cli(port, "GET", "large") == value.decode()
