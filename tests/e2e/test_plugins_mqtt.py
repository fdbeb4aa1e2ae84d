"""Mosquitto behind mqtt-proxy: clients of both versions, each always at the broker that its name is hashed to."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.certificates import CA_PEM, document, issue
from tests.support.child import find_program, run
from tests.support.gateway import Gateway
from tests.support.ports import Ports
from tests.support.servers import mosquitto

pytestmark = [pytest.mark.slow, pytest.mark.servers]

NAME = "localhost"
VERSIONS = {4: "mqttv311", 5: "mqttv5"}
CLIENTS = [f"sensor-{number}" for number in range(24)]


@attrs.frozen
class Scene:
    """Two brokers that know nothing of each other, and a port for each version of the protocol."""

    gateway: Gateway
    ports: dict[int, int]
    tls_port: int
    ca: Path

    def publish(self, client_id: str, text: str, *, version: int = 4, tls: bool = False) -> None:
        """A message that the broker keeps for `client_id`."""
        program = find_program("mosquitto_pub", package="mosquitto-clients")
        run([program, *self._to(client_id, version, tls), "-t", f"said/{client_id}", "-m", text, "-r"])

    def kept(self, client_id: str, *, version: int = 4, tls: bool = False) -> str:
        """What the broker that this client gets to has kept; empty: nothing."""
        program = find_program("mosquitto_sub", package="mosquitto-clients")
        words = [
            program,
            *self._to(client_id, version, tls),
            "-t",
            f"said/{client_id}",
            "-C",
            "1",
            "-W",
            "20",
        ]
        return run(words, check=False).stdout.strip()

    def _to(self, client_id: str, version: int, tls: bool) -> list[str]:
        place = ["-h", NAME if tls else "127.0.0.1", "-p", str(self.tls_port if tls else self.ports[version])]
        cafile = ["--cafile", str(self.ca)] if tls else []
        return [*place, *cafile, "-V", VERSIONS[version], "-i", client_id]


@pytest.fixture
def scene(gateway: Gateway, ports: Ports, tmp_path: Path) -> Iterator[Scene]:
    ca = tmp_path / "ca.pem"
    ca.write_text(CA_PEM)
    scene = Scene(gateway, {version: ports.take() for version in VERSIONS}, ports.take(), ca)
    brokers = [ports.take(), ports.take()]
    gateway.write_settings(
        [
            *(f"127.0.0.1:{port}" for port in scene.ports.values()),
            {"addr": f"127.0.0.1:{scene.tls_port}", "tls": True},
        ]
    )
    nodes = {f"127.0.0.1:{port}": 1 for port in brokers}
    upstream = {"id": "brokers", "type": "chash", "key": "mqtt_client_id", "nodes": nodes}
    routes: list[object] = [
        {
            "id": f"{name}",
            "server_port": port,
            "upstream_id": "brokers",
            "plugins": {"mqtt-proxy": {"protocol_level": level}},
        }
        for name, port, level in (
            *((f"level-{version}", port, version) for version, port in scene.ports.items()),
            ("tls", scene.tls_port, 4),
        )
    ]
    certificate: object = {"id": "front", "sni": NAME, **issue(NAME).fields()}
    text = document(stream_routes=routes, upstreams=[upstream], ssls=[certificate])
    (gateway.routes / "mqtt.yaml").write_text(text)
    with contextlib.ExitStack() as stack:
        for number, port in enumerate(brokers):
            directory = tmp_path / f"broker-{number}"
            directory.mkdir()
            stack.enter_context(mosquitto(directory, port))
        yield scene


def nodes_of(gateway: Gateway) -> dict[str, set[str]]:
    """By route: the brokers that its clients got to."""
    found: dict[str, set[str]] = {}
    for line in gateway.access_lines():
        found.setdefault(line["route"], set()).add(line["node"])
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_always_gets_to_the_broker_of_its_name(scene: Scene, version: int) -> None:
    with scene.gateway.running():
        for client_id in CLIENTS:
            scene.publish(client_id, f"I am {client_id}", version=version)

        for client_id in CLIENTS:
            assert scene.kept(client_id, version=version) == f"I am {client_id}"
        assert len(nodes_of(scene.gateway)[f"level-{version}"]) == 2, "both brokers have clients"


def test_the_name_is_the_same_whatever_the_version(scene: Scene) -> None:
    with scene.gateway.running():
        for client_id in CLIENTS[:4]:
            scene.publish(client_id, "here", version=4)

        assert {scene.kept(client_id, version=5) for client_id in CLIENTS[:4]} == {"here"}


def test_a_name_inside_tls_is_known_where_tls_ends(scene: Scene) -> None:
    with scene.gateway.running():
        for client_id in CLIENTS[:4]:
            scene.publish(client_id, "here", tls=True)

        assert {scene.kept(client_id) for client_id in CLIENTS[:4]} == {"here"}
        assert {scene.kept(client_id, tls=True) for client_id in CLIENTS[:4]} == {"here"}


def test_another_version_is_refused(scene: Scene) -> None:
    program = find_program("mosquitto_pub", package="mosquitto-clients")
    with scene.gateway.running():
        words = ["-h", "127.0.0.1", "-p", str(scene.ports[5]), "-V", "mqttv311", "-t", "a", "-m", "b"]
        done: subprocess.CompletedProcess[str] = run([program, *words], check=False)
        assert done.returncode != 0

        line = scene.gateway.wait_for_access_line(lambda line: line["reason"] == "rejected", what="refused")
        assert line["detail"] == "mqtt-proxy: speaks 'MQTT' level 4, not 'MQTT' level 5"
