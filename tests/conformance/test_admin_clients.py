"""Tools that were made for APISIX, on a gateway of ours: their requests, in their order, and what they look at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import attrs
import httpx
import pytest
import yaml

from tests.support.adc import ADC, adc, certificate, id_of, service, state
from tests.support.admin_api import BASE, KEY, admin_settings, api_client, stored, to, without_times
from tests.support.certificates import issue
from tests.support.gateway import Gateway
from tests.support.origin import named_origin, whom
from tests.support.ports import Ports
from tests.support.tls_clients import whom as whom_over_tls

pytestmark = pytest.mark.slow

FRONT = issue("db.test.com", "*.db.test.com")
SNIS = ("db.test.com", "*.db.test.com")


@attrs.frozen
class Scene:
    gateway: Gateway
    api: httpx.Client
    url: str
    plain: int
    secure: int
    alpha: int
    beta: int

    def files(self) -> dict[str, Any]:
        """What stands in routes.d, by path."""
        return {
            str(path.relative_to(self.gateway.routes)): yaml.safe_load(path.read_text())
            for path in sorted(self.gateway.routes.rglob("*.yaml"))
        }


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Ports() as ports:
        admin, plain, secure, alpha, beta = (ports.take() for _ in range(5))
        gateway = Gateway(tmp_path / "gateway", ports)
        gateway.write_settings(
            [f"127.0.0.1:{plain}", {"addr": f"127.0.0.1:{secure}", "tls": True}],
            deployment=admin_settings(admin),
        )
        with (
            named_origin(tmp_path, alpha, "alpha"),
            named_origin(tmp_path, beta, "beta"),
            gateway.running(),
            api_client(admin) as api,
        ):
            yield Scene(gateway, api, f"http://127.0.0.1:{admin}{BASE}", plain, secure, alpha, beta)


# ADC


async def has_nothing_to_do(run: ADC, wanted: dict[str, Any]) -> bool:
    return not await run.diff(wanted)


async def test_adc_syncs_a_configuration_and_then_finds_nothing_to_do(scene: Scene) -> None:
    wanted = state(
        certificate(SNIS, FRONT.cert, FRONT.key),
        *service(
            "database", [scene.alpha], plain={"server_port": scene.plain}, secure={"sni": "*.db.test.com"}
        ),
    )
    async with adc(scene.url, KEY) as run:
        assert (await run.validate(wanted)).json() == {}
        assert all(found == {} for found in (await run.dump()).values())

        done = await run.sync(wanted)

        assert [(method, kind) for method, kind, _ in done] == [
            ("PUT", "ssls"),
            ("PUT", "upstreams"),
            ("PUT", "services"),
            ("PUT", "stream_routes"),
            ("PUT", "stream_routes"),
        ]
        assert {status for _, _, status in done} == {201}
        assert await has_nothing_to_do(run, wanted)
    assert whom(scene.plain) == "alpha"
    assert whom_over_tls(scene.secure, "a.db.test.com") == "alpha"


async def test_adc_updates_only_what_has_changed(scene: Scene) -> None:
    match = {"server_port": scene.plain}
    async with adc(scene.url, KEY) as run:
        await run.sync(state(*service("database", [scene.alpha], plain=match)))
        moved = state(*service("database", [scene.beta], plain=match))

        assert await run.sync(moved) == [("PUT", "upstreams", 200)]

        assert whom(scene.plain) == "beta"
        assert await has_nothing_to_do(run, moved)
        more = state(
            *service("database", [scene.beta], plain={**match, "desc": "the database"}),
            *service("cache", [scene.alpha], plain={"remote_addr": "192.0.2.0/24"}),
        )
        assert {(kind, status) for _, kind, status in await run.sync(more)} == {
            *(("upstreams", 201), ("services", 201)),
            *(("stream_routes", 200), ("stream_routes", 201)),
        }
        assert await has_nothing_to_do(run, more)


async def test_adc_deletes_what_is_gone_from_its_files(scene: Scene) -> None:
    everything = state(
        certificate(SNIS, FRONT.cert, FRONT.key),
        *service("database", [scene.alpha], plain={"server_port": scene.plain}),
    )
    async with adc(scene.url, KEY) as run:
        await run.sync(everything)

        done = await run.sync({})

        assert [kind for _, kind, _ in done] == ["stream_routes", "services", "upstreams", "ssls"]
        assert await has_nothing_to_do(run, {})
    assert scene.files() == {}
    assert whom(scene.plain) == ""


async def test_adc_writes_many_objects_ten_at_a_time(scene: Scene) -> None:
    routes = {f"r{number}": {"remote_addr": f"192.0.2.{number}"} for number in range(60)}
    wanted = state(*service("database", [scene.alpha], **routes, here={"server_port": scene.plain}))
    async with adc(scene.url, KEY) as run:
        assert len(await run.sync(wanted)) == 63

        assert await has_nothing_to_do(run, wanted)
    assert whom(scene.plain) == "alpha"
    assert len(scene.files()) == 63


async def test_what_adc_put_is_what_it_gets_and_what_a_person_reads(scene: Scene) -> None:
    wanted = state(*service("database", [scene.alpha], plain={"server_port": scene.plain}))
    async with adc(scene.url, KEY) as run:
        await run.sync(wanted)
        found = await run.dump()

    for kind, objects in wanted.items():
        for id_, body in objects.items():
            assert without_times(found[kind][id_]) == {**body, "id": id_}
            (written,) = scene.files()[f"{kind}/{id_}.yaml"][kind]
            assert without_times(written) == {**body, "id": id_}


async def test_adc_learns_which_object_is_wrong(scene: Scene) -> None:
    wanted = state(
        *service("database", [scene.alpha], good={"server_port": 1}, wrong={"server_port": 65_536}),
    )
    async with adc(scene.url, KEY) as run:
        answer = await run.validate(wanted)

    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["resource_type"], error["index"]) == ("stream_routes", 1)
    assert error["resource_id"] == id_of("database.wrong")
    assert "expected 65536 to be at most 65535" in error["error"]


# The dashboard


def test_the_dashboards_way_through_a_route(scene: Scene) -> None:
    """List, add, open, save, filter, delete."""
    api = scene.api
    page = {"page": 1, "page_size": 10}
    assert api.get("/stream_routes", params=page).json() == {"list": [], "total": 0}
    upstream = {"type": "roundrobin", "nodes": [{"host": "127.0.0.1", "port": scene.alpha, "weight": 1}]}
    shared = stored(api.post("/services", json={"name": "shared", "upstream": upstream}), status=201)
    added = stored(
        api.post("/stream_routes", json={"server_port": scene.plain, "service_id": shared["id"]}), status=201
    )
    assert whom(scene.plain) == "alpha"

    opened = api.get(f"/stream_routes/{added['id']}").json()
    assert opened["value"] == added
    # What it sends back is what it got, less what it knows to be the server's.
    saved = {**without_times(opened["value"]), "desc": "saved"}
    assert stored(api.put(f"/stream_routes/{added['id']}", json=saved))["desc"] == "saved"
    assert whom(scene.plain) == "alpha"

    by_service = {**page, "filter": urlencode({"service_id": shared["id"]})}
    assert api.get("/stream_routes", params=by_service).json()["total"] == 1
    assert api.get("/stream_routes", params={**page, "filter": "service_id=other"}).json()["total"] == 0
    assert api.get("/services", params={**page, "name": "^sha"}).json()["total"] == 1
    assert api.get("/services", params={**page, "page_size": 9}).status_code == 400

    in_use = api.delete(f"/services/{shared['id']}")
    assert in_use.status_code == 400
    assert f"stream_route [{added['id']}] is still using it now" in in_use.json()["error_msg"]
    assert api.delete(f"/stream_routes/{added['id']}").status_code == 200
    assert api.delete(f"/services/{shared['id']}").status_code == 200
    assert whom(scene.plain) == ""


def test_the_dashboards_lists_and_plugins(scene: Scene) -> None:
    for kind in ("routes", "services", "upstreams", "ssls", "stream_routes", "consumers", "secrets"):
        assert scene.api.get(f"/{kind}", params={"page": 1, "page_size": 10}).json() == {
            "list": [],
            "total": 0,
        }
    plugins = scene.api.get("/plugins", params={"all": "true", "subsystem": "stream"}).json()
    assert plugins["limit-conn"]["schema"]["properties"]["conn"]
    assert (
        scene.api.get("/schema/plugins/limit-conn", params={"subsystem": "stream"}).json()["type"] == "object"
    )


def test_the_dashboard_never_sees_a_key(scene: Scene) -> None:
    stored(scene.api.put("/stream_routes/1", json=to(scene.alpha)), status=201)
    put = scene.api.post("/ssls", json={"snis": [*SNIS], **FRONT.fields()})
    secret = FRONT.key.splitlines()[1]

    for answer in (put, scene.api.get("/ssls"), scene.api.get(f"/ssls/{stored(put, status=201)['id']}")):
        assert answer.is_success
        assert secret not in answer.text
        assert "BEGIN CERTIFICATE" in answer.text
    assert whom_over_tls(scene.secure, "a.db.test.com") == "alpha"


# The ingress controller: the standalone protocol


def document(scene: Scene, port: int, version: int) -> dict[str, Any]:
    """As it sends it: everything, with versions in milliseconds and the index of each object."""
    labels = {"managed-by": "apisix-ingress-controller"}
    nodes = [{"host": "127.0.0.1", "port": port, "weight": 1}]
    return {
        "ssls": [],
        "services": [
            {"id": "s1", "name": "s1", "modifiedIndex": version, "labels": labels, "upstream_id": "u1"},
        ],
        "upstreams": [{"id": "u1", "modifiedIndex": version, "type": "roundrobin", "nodes": nodes}],
        "stream_routes": [
            {"id": "r1", "modifiedIndex": version, "server_port": scene.plain, "service_id": "s1"}
        ],
        "consumers": [],
        "routes": [],
        "global_rules": [],
        "plugin_metadata": [],
        **{
            f"{kind}_conf_version": version
            for kind in ("ssls", "services", "upstreams", "stream_routes", "routes")
        },
    }


def put_configs(scene: Scene, content: dict[str, Any]) -> httpx.Response:
    body = json.dumps(content)
    digest = hashlib.sha1(body.encode()).hexdigest()
    return scene.api.put(
        "/configs", content=body, headers={"X-Digest": digest, "Content-Type": "application/json"}
    )


def test_the_ingress_controllers_conversation(scene: Scene) -> None:
    version = httpx.head(scene.url, trust_env=False)
    assert version.status_code == 200
    assert "server" in version.headers
    empty = scene.api.head("/configs")
    assert (empty.status_code, empty.headers.get("x-last-modified")) == (200, None)
    assert scene.api.get("/configs").json()["stream_routes_conf_version"] == 0

    first = document(scene, scene.alpha, 1_700_000_000_000)
    accepted = put_configs(scene, first)
    assert accepted.status_code == 202
    assert whom(scene.plain) == "alpha"
    assert accepted.headers["x-digest"] == hashlib.sha1(json.dumps(first).encode()).hexdigest()
    known = scene.api.head("/configs")
    assert known.headers["x-last-modified"] == accepted.headers["x-last-modified"]
    assert put_configs(scene, first).status_code == 204

    shown = scene.api.get("/configs").json()
    kinds = ("services", "upstreams", "stream_routes")
    assert {kind: shown[kind] for kind in kinds} == {kind: first[kind] for kind in kinds}

    second = document(scene, scene.beta, 1_700_000_000_001)
    assert put_configs(scene, second).status_code == 202
    assert whom(scene.plain) == "beta"
    older = put_configs(scene, first)
    assert (older.status_code, "must be greater than or equal to" in older.json()["error_msg"]) == (400, True)
    assert scene.api.put("/configs", json=first).json() == {"error_msg": "missing digest header"}
    assert whom(scene.plain) == "beta"


def test_what_the_ingress_controller_put_survives_a_restart(scene: Scene) -> None:
    content = document(scene, scene.alpha, 1)
    accepted = put_configs(scene, content)
    assert scene.gateway.child is not None
    scene.gateway.child.stop()

    with scene.gateway.running():
        assert scene.api.head("/configs").headers["x-digest"] == accepted.headers["x-digest"]
        assert put_configs(scene, content).status_code == 204
        assert whom(scene.plain) == "alpha"
