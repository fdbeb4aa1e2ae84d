"""`workers: 1` as the supervisor sees it. Several: test_many.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import trio

from streamgw.config.discovery import DiscoverySettings
from streamgw.config.settings import AccessLogSettings, ReloadSettings, ResolverSettings, Settings
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import Address
from streamgw.process.crew import RESOLVER_POINTERS, OneWorker
from streamgw.process.sockets import Sockets
from tests.support.worker import ANY, write_routes


async def test_one_worker_is_a_crew(tmp_path: Path) -> None:
    routes = tmp_path / "routes.d"
    routes.mkdir()
    write_routes(routes, 1995)
    settings = Settings(
        listeners=(ANY,),
        access_log=AccessLogSettings(path=str(tmp_path / "access.log")),
        reload=ReloadSettings(settle_ms=10),
    )
    sockets = Sockets()
    sockets.replace(settings.listeners)
    crew = OneWorker(settings, routes, sockets)
    fleet = crew.fleet(settings_status=ReloadStatus, look_at_settings=lambda: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(crew.run)
        await crew.listen()
        (port,) = (listener.port for listener in sockets.listeners())
        async with await trio.open_tcp_stream("127.0.0.1", port):
            assert fleet.ready()
            assert len((await fleet.status())["workers"]) == 1
        (tmp_path / "access.log").rename(tmp_path / "old.log")
        crew.reopen_logs()
        crew.poke()
        crew.publish_reload("settings", ReloadStatus())
        await crew.apply(attrs.evolve(settings, drain_timeout_s=7.0))
        assert crew.settings.drain_timeout_s == 7.0

        with trio.fail_after(10):
            while not (tmp_path / "access.log").exists():
                await trio.sleep(0.005)
            await crew.step_back(trio.current_time())
            await crew.ended.wait()
        crew.drain(trio.current_time())
        assert crew.draining
        assert crew.live_sessions == 0
    sockets.close_all()


@pytest.mark.parametrize(
    ("pointer", "change"),
    [
        ("streamgw.workers", {"workers": 2}),
        ("streamgw.relay", {"relay": "sockmap"}),
        ("streamgw.reload", {"reload": ReloadSettings(settle_ms=7)}),
        ("streamgw.resolver", {"resolver": ResolverSettings(max_ttl_s=7.0)}),
        ("apisix.resolver_timeout", {"resolver": ResolverSettings(timeout_s=7.0)}),
        (
            "discovery.dns",
            {"resolver": ResolverSettings(discovery=DiscoverySettings(servers=(Address("10.0.0.53", 53),)))},
        ),
    ],
)
def test_what_one_worker_has_for_good_is_named_as_it_is_set(
    pointer: str, change: Mapping[str, object], tmp_path: Path
) -> None:
    old = Settings()

    differs = OneWorker(old, tmp_path, Sockets()).needs_start(old, attrs.evolve(old, **change))

    assert [name for name, does in differs.items() if does] == [pointer]


def test_all_that_is_asked_of_names_is_set_somewhere() -> None:
    named = [name for names in RESOLVER_POINTERS.values() for name in names]

    assert sorted(named) == sorted(attrs.fields_dict(ResolverSettings))
