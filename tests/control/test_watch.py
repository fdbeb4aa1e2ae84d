"""Real directories and real inotify: each way in which files change is noticed. Times are printed, not asserted."""

import os
import resource
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import structlog
import trio

from streamgw.control.watch import Further, _Watch, changes
from tests.support.gateway import write_atomically

pytestmark = pytest.mark.slow

NEVER_S = 3600.0
"""A re-look this far away: what is seen was an event."""


@attrs.define
class Scene:
    """Follows a path, and knows what a reader who looks again at each call would know."""

    path: Path
    looks: AsyncGenerator[None]

    async def sees(self, text: str | None) -> float:
        """Until a look finds this text in all files together (None: no file). Returns the seconds that took."""
        began_at = trio.current_time()
        with trio.fail_after(10):
            async for _ in self.looks:
                if self.read() == text:
                    break
        took_s = trio.current_time() - began_at
        print(f"seen after {took_s * 1000:.0f} ms")  # noqa: T201  pytest -rP shows it
        return took_s

    def read(self) -> str | None:
        if self.path.is_file():
            return self.path.read_text()
        files = [file for file in sorted(self.path.rglob("*.yaml")) if not file.name.startswith(".")]
        return "".join(file.read_text() for file in files) or None


@asynccontextmanager
async def watching(path: Path, *, relook_s: float = NEVER_S, settle_ms: int = 20) -> AsyncIterator[Scene]:
    async with aclosing(changes(path, settle_ms=settle_ms, relook_s=relook_s)) as looks:
        await anext(looks)
        yield Scene(path, looks)


@pytest.fixture
def routes(tmp_path: Path) -> Path:
    directory = tmp_path / "routes.d"
    directory.mkdir()
    (directory / "a.yaml").write_text("old")
    return directory


@attrs.frozen
class Elsewhere:
    """Certificates beside the routes: what one file says, and a watcher that was told of it after it had begun."""

    file: Path
    looks: AsyncGenerator[None]
    further: Further

    async def sees(self, text: str) -> None:
        with trio.fail_after(10):
            while self.file.read_text() != text:
                await anext(self.looks)

    async def sees_nothing(self) -> None:
        with trio.move_on_after(0.3):
            await anext(self.looks)
            raise AssertionError("nothing that is watched has changed")


@asynccontextmanager
async def watching_elsewhere(routes: Path, file: Path, **settings: bool) -> AsyncIterator[Elsewhere]:
    further = Further()
    looks = changes(routes, settle_ms=20, relook_s=NEVER_S, further=further, **settings)
    async with aclosing(looks):
        await anext(looks)
        further.replace([file])
        with trio.fail_after(10):
            await anext(looks)
        yield Elsewhere(file, looks, further)


def git(directory: Path, *words: str) -> None:
    command = [
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "-c",
        "init.defaultBranch=main",
        *words,
    ]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def save(routes: Path) -> None:
    (routes / "a.yaml").write_text("new")


def rename_over(routes: Path) -> None:
    (routes / ".a.yaml.tmp").write_text("new")
    (routes / ".a.yaml.tmp").rename(routes / "a.yaml")


def several_at_once(routes: Path) -> None:
    (routes / "a.yaml").write_text("n")
    (routes / "b.yaml").write_text("e")
    (routes / "c.yaml").write_text("w")


def into_a_new_subdirectory(routes: Path) -> None:
    (routes / "a.yaml").unlink()
    (routes / "stream_routes").mkdir()
    (routes / "stream_routes" / "mysql.yaml").write_text("new")


def replace_the_directory(routes: Path) -> None:
    fresh = routes.with_name("fresh")
    fresh.mkdir()
    (fresh / "a.yaml").write_text("new")
    routes.rename(routes.with_name("stale"))
    fresh.rename(routes)


def remove_and_make_again(routes: Path) -> None:
    shutil.rmtree(routes)
    routes.mkdir()
    (routes / "a.yaml").write_text("new")


@pytest.mark.parametrize(
    "change",
    [
        save,
        rename_over,
        several_at_once,
        into_a_new_subdirectory,
        replace_the_directory,
        remove_and_make_again,
    ],
)
async def test_a_change_is_seen(change: Callable[[Path], None], routes: Path) -> None:
    async with watching(routes) as scene:
        change(routes)

        await scene.sees("new")


async def test_after_a_replacement_the_new_directory_is_watched(routes: Path) -> None:
    async with watching(routes) as scene:
        replace_the_directory(routes)
        await scene.sees("new")

        (routes / "a.yaml").write_text("newer")
        await scene.sees("newer")


async def test_a_new_subdirectory_is_watched(routes: Path) -> None:
    async with watching(routes) as scene:
        into_a_new_subdirectory(routes)
        await scene.sees("new")

        (routes / "stream_routes" / "mysql.yaml").write_text("newer")
        await scene.sees("newer")


async def test_a_deleted_file_is_missed(routes: Path) -> None:
    async with watching(routes) as scene:
        (routes / "a.yaml").unlink()

        await scene.sees(None)


async def test_a_directory_that_is_made_later_is_found(tmp_path: Path) -> None:
    async with watching(tmp_path / "etc" / "routes.d") as scene:
        (tmp_path / "etc" / "routes.d").mkdir(parents=True)
        (tmp_path / "etc" / "routes.d" / "a.yaml").write_text("new")

        await scene.sees("new")


async def test_a_git_checkout_is_seen(routes: Path) -> None:
    git(routes, "init")
    git(routes, "add", ".")
    git(routes, "commit", "-m", "old")
    git(routes, "checkout", "-b", "next")
    save(routes)
    (routes / "b.yaml").write_text("er")
    git(routes, "add", ".")
    git(routes, "commit", "-m", "new")
    git(routes, "checkout", "main")

    async with watching(routes) as scene:
        git(routes, "checkout", "next")
        await scene.sees("newer")

        git(routes, "checkout", "main")
        await scene.sees("old")


def mount_config_map(directory: Path, generation: str, text: str) -> None:
    """As kubelet's AtomicWriter does it: a new directory, then one rename of the `..data` link."""
    (directory / generation).mkdir(parents=True)
    (directory / generation / "a.yaml").write_text(text)
    (directory / "..data_tmp").symlink_to(generation)
    (directory / "..data_tmp").rename(directory / "..data")
    if not (directory / "a.yaml").is_symlink():
        (directory / "a.yaml").symlink_to("..data/a.yaml")


@pytest.mark.parametrize("path", ["", "a.yaml"], ids=["directory", "one file"])
async def test_a_swapped_config_map_is_seen(path: str, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount_config_map(mount, "..2026_11_21", "old")

    async with watching(mount / path) as scene:
        mount_config_map(mount, "..2026_11_22", "new")
        await anext(scene.looks)

        assert (mount / "a.yaml").read_text() == "new"


async def test_a_swapped_link_on_the_way_is_seen(tmp_path: Path) -> None:
    for release, text in [("r1", "old"), ("r2", "new")]:
        (tmp_path / "releases" / release / "routes.d").mkdir(parents=True)
        (tmp_path / "releases" / release / "routes.d" / "a.yaml").write_text(text)
    (tmp_path / "current").symlink_to("releases/r1")

    async with watching(tmp_path / "current" / "routes.d") as scene:
        (tmp_path / "next").symlink_to(tmp_path / "releases" / "r2")
        (tmp_path / "next").rename(tmp_path / "current")
        await scene.sees("new")

        (tmp_path / "releases" / "r2" / "routes.d" / "a.yaml").write_text("newer")
        await scene.sees("newer")


@pytest.mark.parametrize("change", [save, rename_over], ids=["saved", "renamed over"])
async def test_one_file_can_be_watched(change: Callable[[Path], None], routes: Path) -> None:
    async with watching(routes / "a.yaml") as scene:
        change(routes)

        await scene.sees("new")


async def test_one_file_that_is_made_later_is_found(tmp_path: Path) -> None:
    async with watching(tmp_path / "conf" / "config.yaml") as scene:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "config.yaml").write_text("new")

        await scene.sees("new")


async def test_neighbours_and_hidden_files_wake_nobody(routes: Path) -> None:
    (routes / ".git").mkdir()

    async with watching(routes) as scene:
        (routes.parent / "neighbour").write_text("noise")
        (routes / ".a.yaml.swp").write_text("noise")
        (routes / ".git" / "index").write_text("noise")

        with trio.move_on_after(0.3) as patience:
            await anext(scene.looks)
        assert patience.cancelled_caught


async def test_a_file_that_is_known_wakes_nobody_until_somebody_else_changes_it(routes: Path) -> None:
    known: dict[str, str] = {}

    def is_known(path: str) -> bool:
        return known.get(path) == Path(path).read_text()

    @asynccontextmanager
    async def knowing() -> AsyncIterator[AsyncGenerator[None]]:
        async with aclosing(changes(routes, settle_ms=20, relook_s=NEVER_S, is_known=is_known)) as looks:
            await anext(looks)
            known[str(routes / "a.yaml")] = "ours"
            write_atomically(routes / "a.yaml", "ours")
            yield looks

    async with knowing() as looks:
        with trio.move_on_after(0.3):
            await anext(looks)
            raise AssertionError("nobody needs to look")
    async with knowing() as looks:
        (routes / "a.yaml").write_text("theirs")
        with trio.fail_after(10):
            await anext(looks)


async def test_a_lost_event_is_made_up_for_by_the_next_re_look(routes: Path, tmp_path: Path) -> None:
    """A link to elsewhere: nothing in the directory itself changes, so there is no event."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.yaml").write_text("")
    (routes / "b.yaml").symlink_to(elsewhere / "b.yaml")

    async with watching(routes, relook_s=0.1) as scene:
        (elsewhere / "b.yaml").write_text("er")

        await scene.sees("older")


async def test_a_re_look_that_finds_nothing_new_wakes_nobody(routes: Path) -> None:
    async with watching(routes, relook_s=0.02) as scene:
        with trio.move_on_after(0.3) as patience:
            await anext(scene.looks)

        assert patience.cancelled_caught


async def test_links_that_go_round_in_circles_are_survived(routes: Path) -> None:
    (routes / "again").symlink_to(routes)
    (routes / "x.yaml").symlink_to("y.yaml")
    (routes / "y.yaml").symlink_to("x.yaml")

    async with watching(routes) as scene:
        (routes / "x.yaml").unlink()
        (routes / "y.yaml").unlink()
        save(routes)

        await scene.sees("new")


async def test_a_path_that_leads_in_circles_is_like_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")

    async with watching(tmp_path / "x") as scene:
        (tmp_path / "y").unlink()
        (tmp_path / "y").write_text("new")

        await scene.sees("new")


def make_a_file_of(routes: Path) -> None:
    shutil.rmtree(routes)
    routes.write_text("not a directory")


def make_a_directory_of(routes: Path) -> None:
    routes.unlink()
    routes.mkdir()
    save(routes)


async def test_a_file_where_the_directory_should_be_is_seen_to_go(routes: Path) -> None:
    make_a_file_of(routes)

    async with watching(routes) as scene:
        make_a_directory_of(routes)

        await scene.sees("new")


NOT_UTF8 = os.fsdecode(b"\xe9t\xe9")


@pytest.mark.parametrize(
    "name", [f"{NOT_UTF8}.txt", f"../{NOT_UTF8}"], ids=["within", "beside the directory"]
)
async def test_a_name_that_is_not_utf_8_is_an_alarm_like_any_other(name: str, routes: Path) -> None:
    """A file whose name somebody had written in Latin-1 ended the gateway, and all its sessions."""
    async with watching(routes) as scene:
        (routes / name).touch()
        with trio.fail_after(10):
            await anext(scene.looks)

        save(routes)
        await scene.sees("new")
        rename_over(routes)
        (routes / "a.yaml").write_text("newer")
        await scene.sees("newer")


@pytest.mark.parametrize("name", [NOT_UTF8, f"{NOT_UTF8}/routes.d"], ids=["below", "on the way"])
async def test_directories_that_are_not_utf_8_are_surveyed_and_it_is_said_once(
    tmp_path: Path, name: str
) -> None:
    """No gateway could start while there was one."""
    (tmp_path / name).mkdir(parents=True)
    path = tmp_path if name == NOT_UTF8 else tmp_path / name

    with structlog.testing.capture_logs() as logs:
        async with watching(path, relook_s=0.1) as scene:
            for text in ("new", "newer"):
                (tmp_path / name / "a.yaml").write_text(text)
                await scene.sees(text)

    assert [line["event"] for line in logs] == ["cannot_watch"]
    assert "not UTF-8: " in logs[0]["error"]


async def test_a_directory_that_is_not_utf_8_may_be_made_at_any_time(routes: Path) -> None:
    async with watching(routes, relook_s=0.1) as scene:
        (routes / NOT_UTF8).mkdir()
        with trio.fail_after(10):
            await anext(scene.looks)

        save(routes)
        await scene.sees("new")
        (routes / NOT_UTF8).rmdir()
        rename_over(routes)
        (routes / "a.yaml").write_text("newer")
        await scene.sees("newer")


async def test_a_way_that_the_kernel_refuses_is_a_change_and_no_end(tmp_path: Path) -> None:
    """Like a directory that may not be entered, or a file server that is away: stat(2) says something unusual."""
    (tmp_path / "routes.d").mkdir()
    (tmp_path / "routes.d" / "a.yaml").write_text("old")
    way = tmp_path / "way"
    way.symlink_to("routes.d")

    def lead(target: str) -> None:
        (tmp_path / "next").symlink_to(target)
        (tmp_path / "next").rename(way)

    async with watching(way) as scene:
        lead("x" * 300)
        with trio.fail_after(10):
            await anext(scene.looks)

        save(tmp_path / "routes.d")
        lead("routes.d")
        await scene.sees("new")


async def test_a_file_elsewhere_of_an_impossible_name_is_not_there(routes: Path, tmp_path: Path) -> None:
    async with watching_elsewhere(routes, tmp_path / "a\0b") as elsewhere:
        await elsewhere.sees_nothing()


def test_a_survey_that_fails_is_a_change_and_the_next_begins_anew(routes: Path) -> None:
    deep = routes / ("/".join(["d"] * 1100))
    subprocess.run(["mkdir", "-p", deep], check=True)
    watch = _Watch(routes, 20, force_polling=False)

    with structlog.testing.capture_logs() as logs:
        assert watch.survey()
        assert watch.survey()
        assert not watch.listen(0.01, threading.Event())
    subprocess.run(["rm", "-r", routes / "d"], check=True)

    assert [line["event"] for line in logs] == ["cannot_watch"]
    assert watch.survey(), "it can be surveyed again"
    assert not watch.survey()
    save(routes)
    assert watch.listen(10, threading.Event())
    watch.close()


def test_a_directory_that_vanishes_while_it_is_about_to_be_watched_is_surveyed_again(tmp_path: Path) -> None:
    watch = _Watch(tmp_path, 20, force_polling=False)

    assert watch._rewatch({str(tmp_path / "vanished"): (0, 0)})

    assert not watch.listen(0.01, threading.Event())


def test_out_of_descriptors_surveys_go_on_and_it_is_said_once(routes: Path) -> None:
    watch = _Watch(routes, 20, force_polling=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    with structlog.testing.capture_logs() as logs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            watch._rewatch({str(routes): (0, 0)})
            watch._rewatch({str(routes): (0, 0)})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [(line["event"], line["log_level"]) for line in logs] == [("cannot_watch", "error")]
    assert not watch.listen(0.01, threading.Event())
    assert watch.survey(), "with descriptors again, it watches again"
    save(routes)
    assert watch.listen(10, threading.Event())
    watch.close()


async def test_polling_serves_file_systems_without_events(routes: Path) -> None:
    async with aclosing(changes(routes, settle_ms=20, relook_s=NEVER_S, force_polling=True)) as looks:
        await anext(looks)
        save(routes)

        await Scene(routes, looks).sees("new")


async def test_cancellation_does_not_wait_for_the_next_re_look(routes: Path) -> None:
    async with watching(routes) as scene:
        began_at = trio.current_time()
        with trio.move_on_after(0.05):
            await anext(scene.looks)

        took_s = trio.current_time() - began_at
        print(f"cancelled after {took_s * 1000:.0f} ms")  # noqa: T201  pytest -rP shows it
        assert took_s < 60


def overwrite(file: Path) -> None:
    file.write_text("new")


def put_in_place(file: Path) -> None:
    (file.parent / ".new").write_text("new")
    (file.parent / ".new").rename(file)


def swap_the_link_before_it(file: Path) -> None:
    """Kubernetes' way: `tls.crt` leads to `..data/tls.crt`, and `..data` is replaced."""
    (file.parent / "..2").mkdir()
    (file.parent / "..2" / file.name).write_text("new")
    (file.parent / "..tmp").symlink_to("..2")
    (file.parent / "..tmp").rename(file.parent / "..data")


@pytest.mark.parametrize("change", [overwrite, put_in_place, swap_the_link_before_it])
async def test_a_file_elsewhere_is_watched_from_the_moment_it_is_named(
    change: Callable[[Path], None], routes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "certificates" / "a.pem"
    (file.parent / "..1").mkdir(parents=True)
    (file.parent / "..1" / file.name).write_text("old")
    (file.parent / "..data").symlink_to("..1")
    if change is swap_the_link_before_it:
        file.symlink_to(f"..data/{file.name}")
    else:
        file.write_text("old")

    async with watching_elsewhere(routes, file) as elsewhere:
        await trio.to_thread.run_sync(change, file)

        began_at = trio.current_time()
        await elsewhere.sees("new")
        print(f"seen after {(trio.current_time() - began_at) * 1000:.0f} ms")  # noqa: T201  pytest -rP shows it


async def test_a_file_elsewhere_need_not_exist_yet(routes: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / "later.pem"

    async with watching_elsewhere(routes, file) as elsewhere:
        file.parent.mkdir()
        file.write_text("new")

        with trio.fail_after(10):
            await anext(elsewhere.looks)


async def test_a_file_elsewhere_that_is_not_named_any_more_wakes_nobody(routes: Path, tmp_path: Path) -> None:
    file = tmp_path / "certificates" / "a.pem"
    file.parent.mkdir()
    file.write_text("old")

    async with watching_elsewhere(routes, file) as elsewhere:
        elsewhere.further.replace([])
        with trio.fail_after(10):
            await anext(elsewhere.looks)  # it is gone from what is watched
        elsewhere.further.replace([])

        overwrite(file)

        await elsewhere.sees_nothing()


async def test_files_elsewhere_are_polled_where_there_are_no_events(routes: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    file.write_text("old")

    async with watching_elsewhere(routes, file, force_polling=True) as elsewhere:
        overwrite(file)

        await elsewhere.sees("new")
