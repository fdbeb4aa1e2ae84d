"""What the commands for routes and for upstreams have in common: list, get, write, wait."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click

from streamgw.cli.client import fetch_status, status_url
from streamgw.cli.failure import DATA, TIMED_OUT, Failure, show_problems
from streamgw.cli.options import read_settings, with_output, with_paths
from streamgw.cli.output import print_data, print_table
from streamgw.config.compile import Loader
from streamgw.config.documents import Document, parse_file
from streamgw.config.hidden import masked
from streamgw.config.render import render_flow
from streamgw.config.settings import Settings
from streamgw.config.store import AlreadyExists, NotFound, Stale, Store, Written
from streamgw.config.tree import Tree
from streamgw.core.errors import ConfigError, StoreError
from streamgw.core.model import Key
from streamgw.process.plugins import plugin_set

_POLL_S: Final = 0.02
_ATTEMPTS: Final = 5
"""To change what somebody else changes at the same time."""
_NOT_IN_AN_ID: Final = re.compile(r"[^A-Za-z0-9_.]+")


@attrs.frozen
class Target:
    """Where a command writes, and whether it waits for the gateway."""

    config: Path
    routes: Path
    wait: bool
    timeout_s: float
    url: str | None


def with_wait(command: Callable[..., None]) -> Callable[..., None]:
    """`--wait`, `--timeout` and `--url`, for commands that write."""
    wait = click.option("--wait", is_flag=True, help="Return when the running gateway has applied it.")
    timeout = click.option(
        *("--timeout", "timeout_s"),
        type=click.FloatRange(0),
        default=10.0,
        show_default=True,
        help="Seconds to wait.",
    )
    url = click.option("--url", help="The status endpoint to ask.  [default: from config.yaml]")
    return wait(timeout(url(command)))


# Reading


def list_objects(
    routes: Path, collection: str, output: str, columns: Mapping[str, Callable[[Mapping[str, Any]], str]]
) -> None:
    """Print every object of a collection that can be read; what cannot is a failure afterwards."""
    documents, trouble = read_documents(routes, collection)
    if output == "table":
        rows = [
            [document.key[1], *(show(document.data) for show in columns.values()), str(document.source)]
            for document in documents
        ]
        print_table(["ID", *columns, "FILE"], rows)
    else:
        print_data([shown_object(document) for document in documents], output)
    if trouble:
        raise trouble


def get_object(routes: Path, key: Key, output: str) -> None:
    """Print one object."""
    documents, trouble = read_documents(routes, key[0])
    for document in documents:
        if document.key == key:
            if output == "table":
                rows = [[name, _cell(value)] for name, value in shown_object(document).items()]
                print_table(["FIELD", "VALUE"], [*rows, ["", f"({document.source})"]])
            else:
                print_data(shown_object(document), output)
            return
    raise trouble or NotFound(f"{routes}: no {key[0]} {key[1]}")


def shown_object(document: Document) -> dict[str, Any]:
    """An object as it may be printed: without the text of any key."""
    return {"id": document.key[1], **masked(document.key[0], document.data)}


def complete_id(collection: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A completion of ids. Says nothing when something is wrong: a prompt is no place for errors."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        del parameter
        routes = Path(ctx.params.get("routes") or "routes.d")
        try:
            documents, _ = read_documents(routes, collection)
        except StoreError:
            return []
        return [document.key[1] for document in documents if document.key[1].startswith(incomplete)]

    return complete


def read_documents(routes: Path, collection: str) -> tuple[list[Document], Failure | None]:
    """Every object of a collection that can be read, and what is wrong with the files, if anything is."""
    files = [parse_file(file, os.environ) for file in Store(routes).read().files]
    documents = [document for file in files for document in file.documents if document.key[0] == collection]
    problems = [problem for file in files for problem in file.problems]
    return documents, Failure(DATA, *show_problems(problems)) if problems else None


def _cell(value: object) -> str:
    if not isinstance(value, str):
        return render_flow(value)
    first, newline, _ = value.partition("\n")
    return f"{first}…" if newline else first


# Writing


def add_object(target: Target, collection: str, ids: Iterator[str], data: Mapping[str, object]) -> None:
    """Add an object under the first id that is free, after checking the directory with it in.

    Raises:
      Failure: with every problem it would cause; nothing is written then.
      AlreadyExists: no id is free.
    """
    store = Store(target.routes)
    settings = read_settings(target.config)
    taken: AlreadyExists | None = None
    for id_ in ids:
        key = (collection, id_)
        try:
            _examine(store, store.preview_put(key, data, if_absent=True), settings)
            started = time.perf_counter()
            _report(target, key, store.put(key, data, if_absent=True), started)
        except AlreadyExists as error:
            taken = error
        else:
            return
    assert taken is not None, "there is always an id to try"
    raise taken


def change_object(
    target: Target, key: Key, change: Callable[[Mapping[str, object]], Mapping[str, object]]
) -> None:
    """Change an object where it stands. What somebody else has written meanwhile is not overwritten, but changed.

    Raises:
      Stale: somebody was faster each time.
    """
    store = Store(target.routes)
    settings = read_settings(target.config)
    stale: Stale | None = None
    for _ in range(_ATTEMPTS):
        found = store.find(key)
        if found is None:
            raise NotFound(f"{target.routes}: no {key[0]} {key[1]}")
        data = change(found.data)
        _examine(store, store.preview_put(key, data), settings)
        started = time.perf_counter()
        try:
            written = store.put(key, data, if_match=found.digest)
        except Stale as error:
            stale = error
        else:
            _report(target, key, written, started)
            return
    assert stale is not None, "every attempt ended so"
    raise stale


def remove_object(target: Target, key: Key) -> None:
    """Remove an object that nothing refers to."""
    store = Store(target.routes)
    _examine(store, store.preview_delete(key), read_settings(target.config))
    started = time.perf_counter()
    path = store.delete(key)
    click.echo(f"removed from {path}" if path.exists() else f"removed {path}")
    if target.wait:
        _wait(target, key, None, started)


def slugs(parts: Sequence[str], *, otherwise: str) -> Iterator[str]:
    """Ids made of what an object is about, readable and safe as a file name: `sni-a.test.com`, `…-2`, `…-3`."""
    slug = _NOT_IN_AN_ID.sub("-", "-".join(parts)).strip("-.")[:60].rstrip("-.") or otherwise
    yield slug
    yield from (f"{slug}-{number}" for number in range(2, 1000))


def _examine(store: Store, tree: Tree, settings: Settings) -> None:
    """Compile what the directory would be, and say what is new in it to warn of."""
    try:
        loader = Loader(
            store, environ=os.environ, tls=lambda: settings.tls, plugins=lambda: plugin_set(settings)
        )
        found = loader.check(tree, settings.listeners)
    except ConfigError as error:
        lines = show_problems(error.problems)
        raise Failure(DATA, *lines, "nothing was written") from error
    digests = {file.name: file.digest for file in store.read().files}
    changed = {file.name for file in tree.files if digests.get(file.name) != file.digest}
    warnings = [warning for warning in found.warnings if warning.file in changed]
    for line in show_problems(warnings, level="warning"):
        click.echo(line, err=True)


def _report(target: Target, key: Key, written: Written, started: float) -> None:
    click.echo(str(written.path))
    if target.wait:
        _wait(target, key, written.digest, started)


def _wait(target: Target, key: Key, digest: str | None, started: float) -> None:
    """Ask until the gateway runs this version of the object (None: runs without it).

    Raises:
      Failure: it does not in time (exit code 75), with what it says about that; or nobody answers (69).
    """
    url = target.url or status_url(target.config)
    while True:
        answer = fetch_status(url)
        waited_s = time.perf_counter() - started
        if answer["objects"].get(key[0], {}).get(key[1]) == digest:
            revision = answer["config"]["revision"]
            click.echo(f"applied in {waited_s * 1000:.0f} ms (revision {revision[:8]}…)")
            return
        if waited_s >= target.timeout_s:
            break
        time.sleep(_POLL_S)
    lines = [f"error: written, but not applied after {target.timeout_s:g} s"]
    if answer["config"]["state"] == "rejected":
        lines.append("the gateway rejects what is in the directory:")
        lines += [
            f"  {problem['file']}:{problem['line']}: {problem['message']}"
            for problem in answer["config"]["problems"]
        ]
    raise Failure(TIMED_OUT, *lines)


# The commands that every kind of object has, word for word


def with_id(collection: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The id of an object that exists; a shell completes it."""
    return click.argument("id_", metavar="ID", shell_complete=complete_id(collection))


def add_get(group: click.Group, collection: str, about: str) -> None:
    """`get ID`: print one object as it is written, without keys."""

    @group.command(help=about)
    @with_paths
    @with_id(collection)
    @with_output(default="yaml")
    def get(config: Path, routes: Path, id_: str, output: str) -> None:
        del config
        get_object(routes, (collection, id_), output)


def add_remove(group: click.Group, collection: str, about: str) -> None:
    """`remove ID`: take one object out of the file it stands in."""

    @group.command(help=about)
    @with_paths
    @with_id(collection)
    @with_wait
    def remove(config: Path, routes: Path, id_: str, wait: bool, timeout_s: float, url: str | None) -> None:
        remove_object(Target(config, routes, wait, timeout_s, url), (collection, id_))


def add_switch(group: click.Group, collection: str, *, enable: str, disable: str) -> None:
    """`enable ID` and `disable ID`: only `status` changes in the file, and one that was never written stays away."""

    def switch(name: str, about: str, change: Callable[[Mapping[str, Any]], Mapping[str, object]]) -> None:
        @group.command(name=name, help=about)
        @with_paths
        @with_id(collection)
        @with_wait
        def run(config: Path, routes: Path, id_: str, wait: bool, timeout_s: float, url: str | None) -> None:
            change_object(Target(config, routes, wait, timeout_s, url), (collection, id_), change)

    switch("enable", enable, lambda data: {**data, "status": 1} if "status" in data else data)
    switch("disable", disable, lambda data: {**data, "status": 0})
