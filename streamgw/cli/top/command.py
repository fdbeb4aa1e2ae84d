"""`streamgw top`: the command, and its tasks."""

from __future__ import annotations

import gc
import random
import shutil
import signal
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console
from rich.live import Live

from streamgw.cli.failure import DENIED, UNREACHABLE, Failure
from streamgw.cli.options import read_settings, with_paths
from streamgw.cli.top.client import Admin, Answer, Denied, Unreachable
from streamgw.cli.top.model import Model
from streamgw.cli.top.screen import draw
from streamgw.cli.top.terminal import ENDING, Terminal, own_terminal
from streamgw.cli.top.view import View, keys_of
from streamgw.config.settings import Settings
from streamgw.core.model import Address

DRAW_S: Final = 0.1
"""What happens within this time is drawn together."""
RETRY_S: Final = (0.5, 15.0)
_PIPE_SIZE: Final = (160, 50)
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound


@click.command()
@with_paths
@click.option(
    "--admin", metavar="URL", help="The Admin API: http://127.0.0.1:9180.  [default: from config.yaml]"
)
@click.option(
    "--key", envvar="STREAMGW_ADMIN_KEY", show_envvar=True, help="Its key.  [default: from config.yaml]"
)
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.1, 60),
    default=2.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.option("-n", "--count", type=click.IntRange(1), help="Print this many frames and end, without keys.")
@click.option("--once", is_flag=True, help="As -n 1.")
def top(  # noqa: PLR0913, PLR0917  # one parameter per option
    config: Path,
    routes: Path,
    admin: str | None,
    key: str | None,
    delay: float,
    count: int | None,
    once: bool,
) -> None:
    """Show what the running gateway does, as it does it.

    Sessions with their rates, routes and nodes with theirs, and how the latest sessions ended. Keys: s sorts by the next
    column, r turns the order round, / filters, arrows choose a session, k kills it, p pauses, q ends.
    """
    del routes  # every command takes it; what runs is the gateway's to say
    gc.enable()  # see `cli.main`: this runs for long
    asked = _admin(config, admin, key)
    frames = 1 if once else count
    terminal = own_terminal() if frames is None else None
    program = Top(asked, delay)
    try:
        if terminal is None:
            trio.run(program.print_frames, frames or 1)
        else:
            trio.run(program.run, terminal)
    except Denied as error:
        raise Failure(DENIED, f"error: {error}; see --key") from error
    except Unreachable as error:
        raise Failure(UNREACHABLE, f"error: {error}") from error


def _admin(config: Path, url: str | None, key: str | None) -> Admin:
    if url:
        url = url if "://" in url else f"http://{url}"
        return Admin(f"{url.rstrip('/')}/streamgw/v1", key or "")
    return admin_of(read_settings(config), key or "", config)


def admin_of(settings: Settings, key: str, config: Path) -> Admin:
    """Where a gateway with these settings is asked: its Admin API, or else the control API, which has no live feed.

    Raises:
      Failure: it has neither.
    """
    if settings.admin is not None:
        own = next((each.key for each in settings.admin.keys if each.role == "admin"), "")
        scheme = "https" if settings.admin.tls else "http"
        return Admin(f"{scheme}://{_reachable(settings.admin.listen)}/streamgw/v1", key or own)
    if settings.control is not None:
        return Admin(f"http://{_reachable(settings.control.listen)}/v1", has_feed=False)
    raise Failure(UNREACHABLE, f"error: {config} has neither an Admin API nor a control API; see --admin")


def _reachable(listen: Address) -> Address:
    return Address(_ANYWHERE.get(listen.host, listen.host), listen.port)


class Top:
    """One run: a model, a view, and the tasks that keep the one fed and the other drawn."""

    def __init__(self, admin: Admin, delay_s: float) -> None:
        self._admin = admin
        self._delay_s = delay_s
        self._model = Model()
        self._view = View()
        self._trouble = ""
        self._is_live = False
        self._changed = trio.Event()
        self._poll_now = trio.Event()
        self._random = random.Random()  # noqa: S311  # spreads retries

    # Frames on paper

    async def print_frames(self, count: int) -> None:
        """Print this many frames, `delay` apart; the first after two looks, so that it has rates.

        Raises:
          Unreachable, Denied
        """
        size = shutil.get_terminal_size(_PIPE_SIZE)
        console = Console(width=size.columns, soft_wrap=False, highlight=False)
        await self._look()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            failure = await self._print(console, count, size)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure  # out here: inside, the nursery would wrap it in a group

    async def _print(
        self, console: Console, count: int, size: tuple[int, int]
    ) -> Unreachable | Denied | None:
        for number in range(count):
            await trio.sleep(self._delay_s)
            try:
                await self._look()
            except (Unreachable, Denied) as error:
                return error
            if number:
                console.print()
            now = trio.current_time()
            console.print(draw(self._model, self._view, now=now, size=size, link=self._link(), keys=False))
        return None

    # Frames on a screen

    async def run(self, terminal: Terminal) -> None:
        """Until `q`, Ctrl-C or a signal.

        Raises:
          Unreachable, Denied: at the first look. Later it waits for the gateway to come back.
        """
        await self._look()
        with trio.open_signal_receiver(*ENDING, signal.SIGWINCH) as signals, terminal.borrowed() as live:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_looking)
                nursery.start_soon(self._listen)
                nursery.start_soon(self._keep_drawing, live)
                nursery.start_soon(self._hear_keys, terminal, nursery)
                async for number in signals:
                    if number in ENDING:
                        break
                    self._changed.set()
                nursery.cancel_scope.cancel()

    async def _look(self) -> None:
        self._model.begin_sessions()
        status = await self._admin.status()
        answer = await self._admin.sessions()
        now = trio.current_time()
        self._model.take_status(status, now)
        self._model.take_sessions(answer["sessions"], answer["total"], now)
        self._changed.set()

    async def _keep_looking(self) -> None:
        failures = 0
        while True:
            with trio.move_on_after(self._pause(failures) if failures else self._delay_s):
                await self._poll_now.wait()
            self._poll_now = trio.Event()
            try:
                await self._look()
                failures, self._trouble = 0, ""
            except (Unreachable, Denied) as error:
                failures += 1
                self._trouble = str(error)
                self._changed.set()

    async def _listen(self) -> None:
        failures = 0
        while self._admin.has_feed:
            try:
                await self._admin.listen(on_open=self._opened, on_event=self._heard)
            except Unreachable:
                failures += 1
            else:
                failures = 1
            self._is_live = False
            self._changed.set()
            await trio.sleep(self._pause(failures))

    def _opened(self) -> None:
        self._is_live = True
        self._changed.set()

    def _heard(self, event: Answer) -> None:
        if event.get("kind") == "reload":
            self._poll_now.set()
        self._model.take_event(event, trio.current_time())
        self._changed.set()

    def _pause(self, failures: int) -> float:
        """Longer after each failure; spread, so that not everybody comes back at once."""
        first, most = RETRY_S
        return min(most, first * 2.0**failures) * self._random.uniform(0.5, 1)

    async def _keep_drawing(self, live: Live) -> None:
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            frame = draw(self._model, self._view, now=now, size=live.console.size, link=self._link())
            live.update(frame, refresh=True)
            await trio.sleep(DRAW_S)
            with trio.move_on_after(1):  # ages grow, also while nothing happens
                await self._changed.wait()

    def _link(self) -> str:
        if self._trouble:
            return self._trouble
        if self._is_live:
            return "live"
        return "no live feed" if self._admin.has_feed else "no live feed: no Admin API"

    async def _hear_keys(self, terminal: Terminal, nursery: trio.Nursery) -> None:
        while data := await terminal.read_keys():
            for key in keys_of(data):
                wish = self._view.press(key, self._model, trio.current_time())
                if wish == "quit":
                    nursery.cancel_scope.cancel()
                elif wish == "kill" and self._view.victim is not None:
                    nursery.start_soon(self._kill, self._view.victim.id, self._view.victim.client)
            self._changed.set()
        nursery.cancel_scope.cancel()

    async def _kill(self, id_: str, client: str) -> None:
        try:
            was_there = await self._admin.kill(id_)
            self._view.message = f"{client}: killed" if was_there else f"{client}: had ended already"
        except (Unreachable, Denied) as error:
            self._view.message = str(error)
        self._poll_now.set()
        self._changed.set()
