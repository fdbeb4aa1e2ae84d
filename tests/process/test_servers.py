"""The HTTP servers of a gateway, put together: where they are, and who gets in."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import structlog
import trio
import trustme

from streamgw import __version__
from streamgw.config.endpoints import (
    AdminKey,
    AdminSettings,
    AdminTLS,
    Endpoint,
    HTTPLimits,
    MetricsSettings,
)
from streamgw.control.reloader import ReloadStatus
from streamgw.core.errors import ConfigError
from streamgw.core.model import Address
from streamgw.process.fleet import LocalFleet
from streamgw.process.servers import Servers
from tests.support.ports import Ports
from tests.support.worker import Scene, says, worker_on

KEY = AdminKey("admin", "a" * 32)
CONFIG = Path("conf/config.yaml")


@attrs.frozen
class Doors:
    """A worker with its HTTP servers, on ports of their own."""

    scene: Scene
    servers: Servers
    addresses: Mapping[str, Address]

    async def ask(
        self, server: str, method: str, path: str, *, scheme: str = "http", verify: Any = True, **request: Any
    ) -> httpx.Response:
        async with httpx.AsyncClient(verify=verify) as client:
            return await client.request(method, f"{scheme}://{self.addresses[server]}{path}", **request)


@asynccontextmanager
async def doors(
    tmp_path: Path, ports: Ports, *, named: bool = True, **changes: object
) -> AsyncIterator[Doors]:
    """`named`: conf/config.yaml says where the control API and the metrics are; `changes` are those to the settings."""
    names = ("status", "control", "metrics", "admin")
    addresses = {name: Address("127.0.0.1", ports.take()) for name in names}
    settings: dict[str, object] = {
        "status": addresses["status"],
        "control": Endpoint(addresses["control"], is_named=named),
        "metrics": MetricsSettings(Endpoint(addresses["metrics"], is_named=named)),
        "admin": AdminSettings(addresses["admin"], keys=(KEY,)),
    }
    async with worker_on(tmp_path, **(settings | changes)) as scene, trio.open_nursery() as nursery:
        worker = scene.worker
        fleet = LocalFleet(worker, ReloadStatus, look_at_settings=lambda: None)
        servers = Servers(CONFIG, worker.settings, worker, lambda: fleet)
        await servers.start(nursery)
        yield Doors(scene, servers, addresses)
        nursery.cancel_scope.cancel()
        servers.close()


def with_key(key: str = KEY.key) -> dict[str, dict[str, str]]:
    return {"headers": {"X-API-KEY": key}}


async def test_each_server_answers_what_is_its_own(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports) as gateway, await gateway.scene.connect() as client:
        await says(client)

        assert (await gateway.ask("status", "GET", "/status/ready")).json() == {"status": "ok"}
        assert (await gateway.ask("control", "GET", "/v1/sessions")).json()["total"] == 1
        assert (await gateway.ask("control", "GET", "/v1/stream_route/echo")).status_code == 200
        metrics = (await gateway.ask("metrics", "GET", "/apisix/prometheus/metrics")).text
        assert "apisix_stream_active_connections{" in metrics
        routes = await gateway.ask("admin", "GET", "/apisix/admin/stream_routes", **with_key())
        assert routes.json()["total"] == 1
        status = await gateway.ask("admin", "GET", "/streamgw/v1/status", **with_key())
        assert status.json()["sessions"]["active"] == 1


async def test_the_admin_api_is_behind_the_key_and_says_who_it_is(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports) as gateway:
        for path in ("/apisix/admin/stream_routes", "/streamgw/v1/sessions", "/nowhere"):
            reply = await gateway.ask("admin", "GET", path)
            assert reply.status_code == 401
            assert reply.headers["server"] == f"streamgw/{__version__}"
        head = await gateway.ask("admin", "HEAD", "/apisix/admin")
        assert (head.status_code, head.headers["x-api-version"]) == (200, "v3")
        assert (await gateway.ask("admin", "GET", "/nowhere", **with_key())).json() == {
            "error_msg": "not found"
        }


async def test_clients_that_look_for_apisix_can_be_told_so(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports, http=HTTPLimits(server_header="APISIX/3.18.0")) as gateway:
        assert (await gateway.ask("admin", "HEAD", "/apisix/admin")).headers["server"] == "APISIX/3.18.0"


async def test_a_write_is_live_when_it_answers(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports) as gateway:
        upstream = {"nodes": {f"127.0.0.1:{gateway.scene.upstream_ports[1]}": 1}}
        body = {"upstream": upstream}

        reply = await gateway.ask("admin", "PUT", "/apisix/admin/stream_routes/echo", json=body, **with_key())

        assert reply.status_code == 200, reply.text
        async with await gateway.scene.connect() as client:
            assert str(gateway.scene.upstream_ports[1]) in (await says(client)).decode()


async def test_who_may_use_it_changes_live(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports) as gateway:
        worker, path = gateway.scene.worker, "/apisix/admin/stream_routes"
        admin = worker.settings.admin
        assert admin is not None

        worker.settings = attrs.evolve(
            worker.settings, admin=attrs.evolve(admin, keys=(AdminKey("new", "n" * 32),))
        )
        assert (await gateway.ask("admin", "GET", path, **with_key())).status_code == 401
        assert (await gateway.ask("admin", "GET", path, **with_key("n" * 32))).status_code == 200

        worker.settings = attrs.evolve(worker.settings, admin=None)
        assert (await gateway.ask("admin", "GET", path)).status_code == 401, "the last ones stay"
        assert worker.refused == {"key": 2}


async def test_the_control_api_is_for_names_of_this_machine(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports, http=HTTPLimits(hosts=("gw.example",))) as gateway:
        for host, status in (("evil.example", 403), ("gw.example", 200), ("localhost", 200)):
            reply = await gateway.ask("control", "GET", "/v1/status", headers={"Host": host})
            assert reply.status_code == status


@pytest.mark.parametrize(("has_ui", "status"), [(True, 200), (False, 404)])
async def test_the_page_is_free_of_the_key_and_can_be_switched_off(
    tmp_path: Path, ports: Ports, has_ui: bool, status: int
) -> None:
    listen = Address("127.0.0.1", ports.take())
    async with (
        doors(tmp_path, ports, admin=AdminSettings(listen, keys=(KEY,), has_ui=has_ui)),
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(f"http://{listen}/ui/")).status_code == status


async def test_a_head_beyond_the_limit_is_refused(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports) as gateway:
        reply = await gateway.ask("admin", "GET", "/apisix/admin", headers={"X-API-KEY": "x" * 100_000})

    assert reply.status_code == 431


async def test_what_is_switched_off_is_not_there(tmp_path: Path, ports: Ports) -> None:
    off = {"status": None, "control": None, "metrics": None, "admin": None}
    async with doors(tmp_path, ports, **off) as gateway:
        for server in gateway.addresses:
            with pytest.raises(httpx.ConnectError):
                await gateway.ask(server, "GET", "/")


# Addresses that are taken


async def test_an_address_that_was_asked_for_must_be_had(tmp_path: Path, ports: Ports) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = Address(*stranger.getsockname())
        for name, setting in {
            "apisix.status": {"status": taken},
            "apisix.control": {"control": Endpoint(taken, is_named=True)},
            "plugin_attr.prometheus.export_addr": {
                "metrics": MetricsSettings(Endpoint(taken, is_named=True))
            },
            "deployment.admin.admin_listen": {"admin": AdminSettings(taken, keys=(KEY,))},
        }.items():
            directory = tmp_path / name
            directory.mkdir()
            with pytest.raises(ConfigError) as caught:
                await start_and_fail(directory, **setting)
            (problem,) = caught.value.problems
            assert (
                str(problem) == f"conf/config.yaml {name}: cannot listen on {taken}: address already in use"
            )


async def start_and_fail(tmp_path: Path, **settings: object) -> None:
    async with worker_on(tmp_path, **{"status": None, "control": None, "metrics": None, **settings}) as scene:
        fleet = LocalFleet(scene.worker, ReloadStatus, look_at_settings=lambda: None)
        servers = Servers(CONFIG, scene.worker.settings, scene.worker, lambda: fleet)
        error: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await servers.start(nursery)
            except ConfigError as caught:
                error = caught
            nursery.cancel_scope.cancel()
        servers.close()
    assert error is not None
    raise error


async def test_a_default_address_is_only_missed(tmp_path: Path, ports: Ports) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger, structlog.testing.capture_logs() as logs:
        taken = Address(*stranger.getsockname())
        async with doors(tmp_path, ports, control=Endpoint(taken)) as gateway:
            assert (await gateway.ask("status", "GET", "/status")).status_code == 200

            (missed,) = gateway.servers.missed

    assert str(missed) == f"conf/config.yaml apisix.control: cannot listen on {taken}: address already in use"
    assert [line["problem"] for line in logs if line["event"] == "settings_warning"] == [str(missed)]


# HTTPS


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA()


def https(tmp_path: Path, ca: trustme.CA, *, client_ca: bool) -> AdminTLS:
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    files = ("cert.pem", "key.pem", "ca.pem" if client_ca else "")
    return AdminTLS(*(str(tmp_path / name) if name else "" for name in files))


def browser(ca: trustme.CA, *, certificate: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if certificate:
        ca.issue_cert("operator@example").configure_cert(context)
    return context


async def test_the_admin_api_over_https_may_want_a_certificate(
    tmp_path: Path, ports: Ports, ca: trustme.CA
) -> None:
    listen = Address("127.0.0.1", ports.take())
    admin = AdminSettings(listen, keys=(KEY,), tls=https(tmp_path, ca, client_ca=True))
    async with doors(tmp_path, ports, admin=admin) as gateway:
        url = f"https://{listen}/apisix/admin/stream_routes"

        async with httpx.AsyncClient(verify=browser(ca, certificate=True)) as client:
            assert (await client.get(url, **with_key())).status_code == 200
            assert (await client.get(url)).status_code == 401, "the key is asked for as well"
        async with httpx.AsyncClient(verify=browser(ca, certificate=False)) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(url, **with_key())
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(url.replace("https", "http"))
        assert (await gateway.ask("status", "GET", "/status")).status_code == 200


async def test_https_without_a_client_authority_asks_for_no_certificate(
    tmp_path: Path, ports: Ports, ca: trustme.CA
) -> None:
    listen = Address("127.0.0.1", ports.take())
    admin = AdminSettings(listen, keys=(KEY,), tls=https(tmp_path, ca, client_ca=False))
    async with (
        doors(tmp_path, ports, admin=admin),
        httpx.AsyncClient(verify=browser(ca, certificate=False)) as client,
    ):
        assert (await client.head(f"https://{listen}/apisix/admin")).status_code == 200


@pytest.mark.parametrize("broken", ["cert.pem", "key.pem", "ca.pem"])
async def test_a_certificate_that_is_not_good_stops_the_start(
    tmp_path: Path, ports: Ports, ca: trustme.CA, broken: str
) -> None:
    files = https(tmp_path, ca, client_ca=True)
    (tmp_path / broken).write_text("nonsense")

    with pytest.raises(ConfigError) as caught:
        await start_and_fail(tmp_path, admin=AdminSettings(Address("127.0.0.1", 0), keys=(KEY,), tls=files))

    assert str(caught.value).startswith("conf/config.yaml deployment.admin.admin_api_mtls: not good: ")


async def test_a_client_is_explained_and_schemas_are_shown(tmp_path: Path, ports: Ports) -> None:
    async with doors(tmp_path, ports) as gateway:
        port = gateway.scene.ports[0]
        said = await gateway.ask("control", "GET", f"/v1/explain?server_port={port}")
        schema = await gateway.ask("control", "GET", "/v1/schema")

    assert said.json()["winner"] == "echo"
    assert "stream_route" in schema.json()["main"]
    assert schema.json()["stream_plugins"]["ip-restriction"]["priority"] == 3000
