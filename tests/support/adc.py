"""What APISIX's declarative command line (`adc`) asks of an Admin API, request by request.

Source:
  ADC's backend `apisix`: order of its calls, headers, ids, what it adds to objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import trio

Value = Mapping[str, Any]
State = dict[str, dict[str, Value]]
"""Objects by collection and id."""

HEADERS = {
    "Content-Type": "application/json",  # also on GET
    "Accept": "application/json, text/plain, */*",
    "Connection": "keep-alive",
    "Accept-Encoding": "gzip, compress, deflate, br",
}
READS = (
    *("services", "routes", "upstreams", "ssls", "consumers", "plugin_configs", "global_rules"),
    *("plugin_metadata", "stream_routes"),
)
AT_ONCE = 10
TIMEOUT_S = 30.0
_LABELS = {"managed-by": "adc"}
_SET_BY_THE_SERVER = {"id", "create_time", "update_time", "key", "keys"}
"""Not compared: times, and keys, which nobody is shown."""


def id_of(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def certificate(snis: Sequence[str], cert: str, key: str) -> tuple[str, str, Value]:
    """A certificate as ADC writes it: collection, id, body."""
    id_ = id_of(",".join(snis))
    body = {
        "id": id_,
        "labels": _LABELS,
        "status": 1,
        "type": "server",
        "snis": [*snis],
        "cert": cert,
        "key": key,
    }
    return "ssls", id_, body


def service(name: str, ports: Sequence[int], **routes: Value) -> list[tuple[str, str, Value]]:
    """A service with its upstream, which has the same id, and its stream routes by name."""
    id_ = id_of(name)
    nodes = [{"host": "127.0.0.1", "port": port, "weight": 1, "priority": 0} for port in ports]
    upstream = {"name": name, "labels": _LABELS, "scheme": "tcp", "type": "roundrobin", "pass_host": "pass"}
    objects: list[tuple[str, str, Value]] = [
        ("upstreams", id_, {"id": id_, **upstream, "nodes": nodes}),
        ("services", id_, {"id": id_, "name": name, "labels": _LABELS, "upstream_id": id_}),
    ]
    for route, match in routes.items():
        labels = {**_LABELS, "__ADC_NAME": route}
        objects.append(
            ("stream_routes", id_of(f"{name}.{route}"), {"labels": labels, **match, "service_id": id_})
        )
    return objects


def state(*objects: tuple[str, str, Value]) -> State:
    """What should be there."""
    wanted: State = {}
    for collection, id_, body in objects:
        wanted.setdefault(collection, {})[id_] = body
    return wanted


@attrs.frozen
class Diff:
    """What ADC would do."""

    puts: tuple[tuple[str, str, Value], ...]
    deletes: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes)


class ADC:
    """One run of it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ping(self) -> None:
        answer = await self._client.get("/routes")
        assert answer.is_success

    async def dump(self) -> State:
        """Everything, all collections at the same time."""
        await self.ping()
        found: State = {}

        async def read(collection: str) -> None:
            answer = await self._client.get(f"/{collection}")
            assert answer.status_code == 200, f"{collection}: {answer.text}"
            body = answer.json()
            assert body["total"] == len(body["list"])
            found[collection] = {item["key"].rsplit("/", 1)[1]: item["value"] for item in body["list"]}

        await self._together([(read, (collection,)) for collection in READS])
        return found

    async def diff(self, wanted: State) -> Diff:
        """What differs, in the order in which ADC would put it right."""
        there = await self.dump()
        create = ("ssls", "upstreams", "services", "stream_routes")
        update = ("ssls", "stream_routes", "services", "upstreams")
        new = [
            (kind, id_, body)
            for kind in create
            for id_, body in wanted.get(kind, {}).items()
            if id_ not in there[kind]
        ]
        changed = [
            (kind, id_, body)
            for kind in update
            for id_, body in wanted.get(kind, {}).items()
            if id_ in there[kind] and _compared(body) != _compared(there[kind][id_])
        ]
        gone = [
            (kind, id_)
            for kind in ("stream_routes", "services", "upstreams", "ssls")
            for id_ in there[kind]
            if id_ not in wanted.get(kind, {})
        ]
        return Diff((*new, *changed), tuple(gone))

    async def sync(self, wanted: State) -> list[tuple[str, str, int]]:
        """Make it so, ten writes of a kind at once; return method, collection and status of each write."""
        plan = await self.diff(wanted)
        done: list[tuple[str, str, int]] = []

        async def write(method: str, collection: str, id_: str, body: Value | None) -> None:
            answer = await self._client.request(method, f"/{collection}/{id_}", json=body)
            assert answer.is_success, f"{method} {collection}/{id_}: {answer.text}"
            done.append((method, collection, answer.status_code))

        for kind in dict.fromkeys(kind for kind, _ in plan.deletes):
            await self._together(
                [(write, ("DELETE", kind, id_, None)) for each, id_ in plan.deletes if each == kind]
            )
        for kind in dict.fromkeys(kind for kind, _, _ in plan.puts):
            await self._together(
                [(write, ("PUT", kind, id_, body)) for each, id_, body in plan.puts if each == kind]
            )
        return done

    async def validate(self, wanted: State) -> httpx.Response:
        """Without writing."""
        kinds = (
            "routes",
            "services",
            "consumers",
            "ssls",
            "global_rules",
            "stream_routes",
            "plugin_metadata",
            "upstreams",
        )
        document = {
            kind: [{"id": id_, **body} for id_, body in wanted.get(kind, {}).items()] for kind in kinds
        }
        return await self._client.post("/configs/validate", json=document)

    async def _together(self, jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
        room = trio.CapacityLimiter(AT_ONCE)

        async def one(job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
            async with room:
                await job(*arguments)

        async with trio.open_nursery() as nursery:
            for job, arguments in jobs:
                nursery.start_soon(one, job, arguments)


@asynccontextmanager
async def adc(url: str, key: str) -> AsyncIterator[ADC]:
    """As a user runs it."""
    headers = {"X-API-KEY": key, **HEADERS}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        yield ADC(client)


def _compared(value: Value) -> Value:
    return {name: field for name, field in value.items() if name not in _SET_BY_THE_SERVER}
