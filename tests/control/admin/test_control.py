from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import attrs
import httpx
import pytest
import trio

from streamgw.control.admin.app import build_app, serve_admin
from streamgw.control.admin.control import build_control_routes, build_status_app
from streamgw.control.admin.fleet import SessionFilter
from streamgw.core.model import Address, Facts, Listener
from tests.support.control_fleet import ControlFleet, document, session_row
from tests.support.fake_gateway import FakeGateway
from tests.support.http import get
from tests.support.key_places import MARK, PLACES


@asynccontextmanager
async def status_pages(gateway: FakeGateway) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve_admin, build_status_app(gateway), Address("127.0.0.1", 0))
        nursery.cancel_scope.cancel()


async def test_the_process_is_alive_even_while_it_is_not_ready() -> None:
    async with status_pages(FakeGateway(is_ready=False)) as address:
        reply = await get(address, "/status")

    assert (reply.status, reply.json()) == (200, {"status": "ok"})


async def test_ready_means_that_clients_are_accepted() -> None:
    gateway = FakeGateway()

    async with status_pages(gateway) as address:
        ready = await get(address, "/status/ready")
        gateway.is_ready = False
        draining = await get(address, "/status/ready")

    assert (ready.status, ready.json()) == (200, {"status": "ok"})
    assert (draining.status, draining.json()["status"]) == (503, "error")
    assert "draining" in draining.json()["error"]


async def test_the_status_page_shows_what_the_gateway_says() -> None:
    applied_at = datetime(2026, 11, 21, 5, 30, tzinfo=UTC)
    gateway = FakeGateway(body={"pid": 7, "config": {"applied_at": applied_at, "problems": []}})

    async with status_pages(gateway) as address:
        reply = await get(address, "/streamgw/v1/status")

    assert "content-type: application/json" in reply.head
    assert reply.json() == {
        "pid": 7,
        "config": {"applied_at": "2026-11-21T05:30:00.000+00:00", "problems": []},
    }


# The control API


MYSQL = Listener("tcp", "127.0.0.1", 9100)
DNS = Listener("udp", "127.0.0.1", 9200)
CHECKER = {
    "name": "/apisix/upstreams/1",
    "type": "tcp",
    "nodes": [{"ip": "10.0.0.1", "port": 80, "status": "<healthy>"}],
}


@attrs.define
class Control:
    fleet: ControlFleet = attrs.Factory(ControlFleet)
    listeners: tuple[Listener, ...] = (MYSQL,)

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        routes = build_control_routes(
            "/v1", self.fleet, listeners=lambda: self.listeners, schemas=lambda: {"main": {}}
        )
        transport = httpx.ASGITransport(build_app(routes, as_apisix=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090/v1") as client:
            return await client.request(method, path, **request)

    async def get(self, path: str, **request: Any) -> Any:
        reply = await self.ask("GET", path, **request)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def refused(self, method: str, path: str, **request: Any) -> tuple[int, str]:
        reply = await self.ask(method, path, **request)
        return reply.status_code, reply.json()["error_msg"]


@pytest.fixture
def control() -> Control:
    return Control()


async def test_status_listeners_and_schemas_are_shown_as_they_are(control: Control) -> None:
    assert await control.get("/status") == {"pid": 7}
    assert await control.get("/listeners") == {"listeners": [{"name": "tcp *:9100", "state": "listening"}]}
    assert await control.get("/schema") == {"main": {}}


async def test_sessions_are_rows_and_how_many_there_are(control: Control) -> None:
    control.fleet.rows = [session_row("1"), session_row("2")]

    shown = await control.get("/sessions", params={"limit": "1", "route": "mysql", "client": "10.0.0.0/8"})

    assert shown == {"sessions": [attrs.asdict(session_row("1"))], "total": 2}
    assert control.fleet.wanted == [SessionFilter(route="mysql", client="10.0.0.0/8", limit=1)]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"limit": "many"}, "limit is a number, 0 to 10000"),
        ({"limit": "-1"}, "limit is a number, 0 to 10000"),
        ({"limit": "10001"}, "limit is a number, 0 to 10000"),
        ({"client": "somebody"}, "client is an address or CIDR"),
        ({"rute": "mysql"}, "unknown parameter 'rute'"),
        ({"transport": "sctp"}, "transport is tcp or udp"),
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused(
    control: Control, query: dict[str, str], why: str
) -> None:
    assert await control.refused("GET", "/sessions", params=query) == (400, why)


async def test_one_session_can_be_ended(control: Control) -> None:
    reply = await control.ask("DELETE", "/sessions/a1-1")

    assert (reply.status_code, reply.json()) == (200, {"killed": "a1-1"})
    assert control.fleet.killed == ["a1-1"]
    assert await control.refused("DELETE", "/sessions/a1-2") == (404, "no session a1-2")


async def test_a_client_is_explained_with_what_is_said_of_it(control: Control) -> None:
    query = {
        "remote_addr": "::ffff:10.1.2.3",
        "server_addr": "127.0.0.1",
        "server_port": "9100",
        "sni": "A.test.",
        "alpn": "h2,http/1.1",
        "transport": "tcp",
    }

    assert await control.get("/explain", params=query) == {"winner": "mysql"}

    assert control.fleet.explained == [
        Facts(
            "tcp",
            MYSQL.name,
            Address("10.1.2.3", 0),
            Address("127.0.0.1", 9100),
            server_name="a.test",
            alpn=("h2", "http/1.1"),
        )
    ]


async def test_what_is_not_said_of_a_client_is_guessed(control: Control) -> None:
    control.listeners = (DNS,)

    await control.get("/explain")

    assert control.fleet.explained == [
        Facts("udp", DNS.name, Address("127.0.0.1", 0), Address("127.0.0.1", 9200))
    ]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({}, "server_port is needed: there is not exactly one"),
        ({"server_port": "x"}, "server_port is a port, 1 to 65535"),
        ({"server_port": "0"}, "server_port is a port, 1 to 65535"),
        ({"server_port": "9100", "transport": "sctp"}, "transport is tcp or udp"),
        ({"server_port": "9100", "remote_addr": "me"}, "remote_addr is an address"),
        ({"server_port": "9100", "server_addr": "here"}, "server_addr is an address"),
    ],
)
async def test_what_cannot_be_explained_is_refused(control: Control, query: dict[str, str], why: str) -> None:
    control.listeners = (MYSQL, attrs.evolve(MYSQL, port=9101))

    assert await control.refused("GET", "/explain", params=query) == (400, why)


async def test_a_reload_can_be_asked_for(control: Control) -> None:
    assert (await control.ask("POST", "/reload")).status_code == 202
    assert (await control.ask("PUT", "/plugins/reload")).text == "done"
    assert control.fleet.reloads == 2


async def test_garbage_can_be_collected(control: Control) -> None:
    assert (await control.ask("POST", "/gc")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("POST", "/status"), ("GET", "/sessions/"), ("GET", "/reload")]
)
async def test_what_there_is_not_is_not_found(control: Control, method: str, path: str) -> None:
    assert await control.refused(method, path) == (404, "not found")


async def test_what_dns_says_of_services_can_be_dumped(control: Control) -> None:
    node = {"host": "10.0.0.1", "port": 3306, "weight": 1, "priority": 0, "name": "a.example"}
    control.fleet.services = [{"service_name": "db.example:3306", "nodes": [node], "trouble": "SERVFAIL"}]

    assert await control.get("/discovery/dns/dump") == {
        "services": {"db.example:3306": {"nodes": [node], "trouble": "SERVFAIL"}}
    }


async def test_there_is_no_other_discovery(control: Control) -> None:
    assert await control.refused("GET", "/discovery/consul/dump") == (404, "no discovery of type consul")


async def test_without_checkers_the_health_is_an_empty_object(control: Control) -> None:
    assert await control.get("/healthcheck") == {}


async def test_health_is_shown_of_all_and_of_one(control: Control) -> None:
    control.fleet.checkers = [CHECKER]
    control.fleet.objects = [document("upstreams", "1"), document("upstreams", "2")]

    assert await control.get("/healthcheck") == [CHECKER]
    assert await control.get("/healthcheck/upstreams/1") == CHECKER
    assert await control.refused("GET", "/healthcheck/upstreams/2") == (404, "no checker for upstreams[2]")
    assert await control.refused("GET", "/healthcheck/upstreams/3") == (404, "upstreams[3] not found")
    assert await control.refused("GET", "/healthcheck/upstreams") == (
        404,
        "missing src id for src type upstreams",
    )
    assert await control.refused("GET", "/healthcheck/ssls/1") == (400, "invalid src type ssls")


async def test_health_for_people_is_a_page(control: Control) -> None:
    control.fleet.checkers = [CHECKER]

    reply = await control.ask("GET", "/healthcheck", headers={"Accept": "text/html"})

    assert reply.headers["content-type"].startswith("text/html")
    assert "10.0.0.1:80" in reply.text
    assert "&lt;healthy&gt;" in reply.text


async def test_health_of_an_object_is_that_of_all_its_upstreams(control: Control) -> None:
    """The list named checkers of traffic-split that no address reached."""
    split = "/apisix/stream_routes/p1/plugins/traffic-split/rules/0/weighted_upstreams"
    own, first, second, other = (
        {**CHECKER, "name": name}
        for name in ("/apisix/stream_routes/p1", f"{split}/0", f"{split}/1", "/apisix/stream_routes/p10")
    )
    control.fleet.objects = [document("stream_routes", "p1")]

    control.fleet.checkers = [first, other]
    assert await control.get("/healthcheck/stream_routes/p1") == first
    control.fleet.checkers = [own, other]
    assert await control.get("/healthcheck/stream_routes/p1") == own
    control.fleet.checkers = [own, first, second, other]
    assert await control.get("/healthcheck/stream_routes/p1") == [own, first, second]
    control.fleet.checkers = [other]
    assert await control.refused("GET", "/healthcheck/stream_routes/p1") == (
        404,
        "no checker for stream_routes[p1]",
    )


@pytest.mark.parametrize("place", [place for place, (key, _) in PLACES.items() if key[0] != "ssls"])
async def test_whoever_asks_without_a_key_sees_none(place: str, control: Control) -> None:
    (collection, id_), data = PLACES[place]
    control.fleet.objects = [document(collection, id_, **data)]

    for path in (f"/{collection}", f"/{collection.removesuffix('s')}/{id_}"):
        reply = await control.ask("GET", path)
        assert reply.status_code == 200
        assert MARK not in reply.text
        assert "BEGIN CERTIFICATE" in reply.text


async def test_nor_a_credential_of_a_plugin(control: Control) -> None:
    logger = {"http-logger": {"uri": "https://logs.test", "auth_header": "Bearer hush"}}
    control.fleet.objects = [document("stream_routes", "a", plugins=logger)]

    shown = await control.get("/stream_route/a")

    assert shown["value"]["plugins"] == {"http-logger": {"uri": "https://logs.test"}}


async def test_what_runs_is_dumped_without_keys(control: Control) -> None:
    control.fleet.objects = [
        document("stream_routes", "b", server_port=2, create_time=7, update_time=8),
        document("upstreams", "1", nodes={}, tls={"client_cert": "C", "client_key": "K"}),
        document("stream_routes", "a", server_port=1),
        document("plugin_metadata", "syslog", log_format={}),
        document("ssls", "s", key="K"),
    ]

    routes = await control.get("/stream_routes")

    assert [route["value"]["id"] for route in routes] == ["b", "a"]
    assert routes[0] == {
        "key": "/apisix/stream_routes/b",
        "value": {"id": "b", "server_port": 2, "create_time": 7, "update_time": 8},
        "createdIndex": 7000,
        "modifiedIndex": 8000,
        "file": "routes.d/a.yaml",
        "line": 3,
    }
    assert await control.get("/stream_route/a") == routes[1]
    assert "client_key" not in (await control.ask("GET", "/upstream/1")).text
    assert await control.get("/plugin_metadatas") == [{"id": "syslog", "log_format": {}}]
    assert await control.get("/plugin_metadata/syslog") == {"id": "syslog", "log_format": {}}
    assert await control.get("/routes") == []
    assert await control.refused("GET", "/service/1") == (404, "service[1] not found")
    assert await control.refused("GET", "/ssls") == (404, "not found")
