"""What the documentation of the stream proxy promises of TLS, command by command, on the ports it names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.certificates import issue
from tests.support.child import run, running
from tests.support.gateway import PLAIN, STREAMGW
from tests.support.namespace import is_listening, private_network
from tests.support.origin import named_origin
from tests.support.tls_clients import s_client

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_CONFIG = """\
apisix:
  stream_proxy: # TCP/UDP proxy
    tcp: # TCP proxy address list
      - addr: 9100
        tls: true
"""


def test_a_connection_with_sni_a_test_com_reaches_port_5991(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "routes.d").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(_CONFIG)
    issue("a.test.com").write(tmp_path, "a")

    with private_network(tmp_path) as prefix, named_origin(tmp_path, 5991, "the one on 5991", prefix=prefix):

        def type_(line: str) -> str:
            words = shlex.split(line)
            assert words[0] == "streamgw"
            return run([*prefix, *STREAMGW, *words[1:]], cwd=tmp_path, env=PLAIN).stdout

        command = [*prefix, *STREAMGW, "run"]
        with running(command, log=tmp_path / "gateway.log", cwd=tmp_path, env=PLAIN) as gateway:
            gateway.wait_until(lambda: is_listening(9100, prefix=prefix), what="listens on 9100")

            type_("streamgw ssl add --cert a.pem --key a.key --sni a.test.com --wait")
            type_("streamgw route add --sni a.test.com --node 127.0.0.1:5991 --wait")

            with s_client(tmp_path, 9100, name="a.test.com", prefix=prefix) as client:
                client.wait_for_line("the one on 5991")
            gateway.kill()

    (written,) = (tmp_path / "routes.d" / "ssls").iterdir()
    assert written.stat().st_mode & 0o777 == 0o600
