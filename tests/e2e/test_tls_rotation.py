"""Certificates are replaced while hundreds of clients a second come in: none notices, and the new one is there at once."""

from __future__ import annotations

import math
import ssl
from pathlib import Path

import attrs
import pytest
import trio
from cryptography import x509

from tests.support.certificates import issue
from tests.support.gateway import Gateway, stream_route
from tests.support.origin import named_origin
from tests.support.ports import Ports
from tests.support.tls_clients import TIMEOUT_S, ssl_object, trusting

pytestmark = pytest.mark.slow

INLINE, REFERRED = "inline.test.com", "referred.test.com"
ROTATIONS = 20
DURATION_S = 10.0
CLIENTS = 8
CONNECTIONS_AT_LEAST = 500
NEW_WITHIN_S = 0.2
"""What is promised. Beside this crowd, on a machine that is busy anyhow, a quarter of all must keep it; any may have to wait."""
PATIENCE_S = 20.0


@attrs.frozen
class Handshake:
    """One that a client has made."""

    name: str
    began_at: float
    serial: str


@attrs.frozen
class Rotation:
    """One certificate put in place."""

    name: str
    at: float
    serial: str


@attrs.define
class Crowd:
    """Clients that connect one after the other, under either name, until they are told to stop."""

    port: int
    handshakes: list[Handshake] = attrs.Factory(list)
    failures: list[str] = attrs.Factory(list)

    async def run(self, name: str) -> None:
        context = trusting()
        while True:
            began_at = trio.current_time()
            try:
                with trio.fail_after(TIMEOUT_S):
                    serial = await self._visit(name, context)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
                self.failures.append(f"{name}: {error!r} {error.__cause__!r}")
            else:
                self.handshakes.append(Handshake(name, began_at, serial))

    async def _visit(self, name: str, context: ssl.SSLContext) -> str:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        secure = trio.SSLStream(stream, context, server_hostname=name)
        try:
            await secure.do_handshake()
            greeting = await secure.receive_some(100)
            assert greeting == b"alpha\n", greeting
            serial = str(secure.getpeercert()["serialNumber"])
        except BaseException:
            await trio.aclose_forcefully(secure)
            raise
        await secure.aclose()
        return serial


@attrs.frozen
class Scene:
    gateway: Gateway
    port: int

    def rotate(self, name: str) -> Rotation:
        """Put a new certificate in place, the way people do."""
        issued = issue(name)
        if name == INLINE:
            self.gateway.write_routes("inline.yaml", ssls=[ssl_object(issued, INLINE)])
        else:
            # Two files, one after the other: for a moment they do not belong together.
            _replace(self.gateway.directory / "tls" / "referred.key", issued.key)
            _replace(self.gateway.directory / "tls" / "referred.pem", issued.cert)
        return Rotation(name, trio.current_time(), _serial(issued.cert))


def _replace(path: Path, text: str) -> None:
    """A new file for its owner only, in one step."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.touch(0o600)
    temporary.write_text(text)
    temporary.replace(path)


def _serial(pem: str) -> str:
    number = x509.load_pem_x509_certificate(pem.encode()).serial_number
    text = f"{number:X}"
    return text.zfill(len(text) + len(text) % 2)


async def test_no_handshake_fails_and_the_new_certificate_is_served_at_once(
    gateway: Gateway, ports: Ports, tmp_path: Path
) -> None:
    scene, alpha = Scene(gateway, ports.take()), ports.take()
    gateway.write_settings([{"addr": f"127.0.0.1:{scene.port}", "tls": True}])
    files = {"cert": "$file://../tls/referred.pem", "key": "$file://../tls/referred.key"}
    gateway.write_routes(
        "routes.yaml", stream_route("1", alpha), ssls=[{"id": "r", "sni": REFERRED, **files}]
    )
    rotations = [scene.rotate(INLINE), scene.rotate(REFERRED)]
    crowd = Crowd(scene.port)

    with named_origin(tmp_path, alpha, "alpha"), gateway.running():
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(crowd.run, (INLINE, REFERRED)[number % 2])
            with trio.fail_after(PATIENCE_S):
                while {handshake.name for handshake in crowd.handshakes} != {INLINE, REFERRED}:
                    await trio.sleep(0.01)
            while len(rotations) < ROTATIONS + 2 or len(crowd.handshakes) <= CONNECTIONS_AT_LEAST:
                assert crowd.failures == []
                await trio.sleep(DURATION_S / ROTATIONS)  # the pace of the rotations, not a wait for anything
                rotations.append(scene.rotate((INLINE, REFERRED)[len(rotations) % 2]))
            with trio.fail_after(PATIENCE_S):
                while {rotation.serial for rotation in rotations[-2:]} - {
                    handshake.serial for handshake in crowd.handshakes[-1000:]
                }:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    assert crowd.failures == []
    delays_s = sorted(_delay_s(rotation, crowd.handshakes, rotations) for rotation in rotations[2:])
    told = f"{len(crowd.handshakes)} handshakes; new after {', '.join(f'{delay_s * 1000:.0f}' for delay_s in delays_s)} ms"
    print(told)  # noqa: T201  what was measured
    for name in (INLINE, REFERRED):
        of_name = sorted(
            _delay_s(each, crowd.handshakes, rotations) for each in rotations[2:] if each.name == name
        )
        assert of_name[len(of_name) // 4] < NEW_WITHIN_S, f"{name}: {told}"
    assert delays_s[-1] < PATIENCE_S, told


def _delay_s(rotation: Rotation, handshakes: list[Handshake], rotations: list[Rotation]) -> float:
    """How long after a certificate was in place the last client came that was served an older one."""
    of_name = [each for each in rotations if each.name == rotation.name]
    place = of_name.index(rotation)
    older = {each.serial for each in of_name[:place]}
    late = [each.began_at for each in handshakes if each.serial in older]
    assert late, "somebody was served the one before"
    return max(0.0, max(late, default=-math.inf) - rotation.at)
