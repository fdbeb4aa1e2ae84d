"""`streamgw status`: what a running gateway runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from streamgw.cli.client import fetch_status, status_url
from streamgw.cli.failure import Failure
from streamgw.cli.options import read_settings, with_output, with_paths
from streamgw.cli.output import print_data, print_table, shown_duration, shown_size
from streamgw.config.settings import load_status_address
from streamgw.core.errors import Problem
from streamgw.core.model import Address

_MAX_NODES = 8
"""Of one service that are shown."""


@click.command()
@with_paths
@with_output(default="table")
@click.option("--url", help="The status endpoint.  [default: from config.yaml]")
def status(config: Path, routes: Path, output: str, url: str | None) -> None:
    """Ask the running gateway what it runs.

    Shows first whether the last change was applied, and why not. Exits with 69 when nobody answers.
    """
    del routes  # every command takes it; what runs is the gateway's to say
    answer = fetch_status(url) if url else _ask(config)
    if output != "table":
        print_data(answer, output)
        return
    for line in _headlines(answer):
        click.echo(line)
    _show_workers(answer.get("workers", ()))
    titles = ["LISTENER", "STATE", "SESSIONS", "ACCEPTED"]
    rows = [
        [str(listener[title.lower()]) for title in ["NAME", *titles[1:]]] for listener in answer["listeners"]
    ]
    drops = [listener.get("dropped", {}) for listener in answer["listeners"]]
    if any(drops):
        titles.append("DATAGRAMS DROPPED")
        for row, dropped in zip(rows, drops, strict=True):
            row.append(", ".join(f"{count} {reason}" for reason, count in dropped.items()))
    click.echo()
    print_table(titles, rows)


def _ask(config: Path) -> Mapping[str, Any]:
    """The status of the gateway of these settings, which runs on when they are broken."""
    try:
        read_settings(config)
    except Failure as broken:
        try:
            return fetch_status(f"http://{load_status_address(config, environ=os.environ)}")
        except Failure as nobody:
            raise Failure(broken.exit_code, *broken.lines, *nobody.lines) from broken
    return fetch_status(status_url(config))


def _show_workers(workers: Sequence[Mapping[str, Any]]) -> None:
    """Only where there are several: of one everything is said already."""
    if len(workers) < 2:
        return
    titles = ["WORKER", "PID", "STATE", "SESSIONS", "REVISION", "UP"]
    click.echo()
    print_table(
        titles,
        [
            [
                str(each["worker"]),
                str(each["pid"]),
                each["state"] if each["config"] != "rejected" else f"{each['state']}, rejects the routes",
                str(each["sessions"]),
                each["revision"][:8],
                shown_duration(each["uptime_s"]),
            ]
            for each in workers
        ],
    )


def _headlines(answer: Mapping[str, Any]) -> Iterator[str]:
    state = "draining" if answer["draining"] else "ready" if answer["ready"] else "not ready"
    yield f"streamgw {answer['version']} (pid {answer['pid']}): {state}, up {shown_duration(answer['uptime_s'])}"
    for title, reload in (("routes", answer["config"]), ("settings", answer["settings"])):
        # The settings are one file, shown by its problems; only routes.d has a revision.
        runs = f"revision {reload['revision'][:8]}" if reload["revision"] else "what ran before"
        if reload["state"] == "rejected":
            yield click.style(f"{title}: REJECTED, {runs} still runs", fg="red", bold=True)
            for problem in reload["problems"]:
                yield f"  {_place(problem)}"
        elif reload["applied_at"]:
            what = f"{runs} applied" if reload["revision"] else "applied"
            yield f"{title}: {what} at {reload['applied_at']}"
        else:
            yield f"{title}: as they were at the start"
        for warning in reload["warnings"]:
            yield f"  warning: {_place(warning)}"
    counts = {name: len(objects) for name, objects in answer["objects"].items()}
    yield "objects: " + (", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none")
    for service in answer.get("discovery", ()):
        yield _service(service)
    relays = {worker.get("relay") for worker in answer.get("workers", ())} - {"", None}
    if "sockmap" in relays:
        yield f"relay: {' and '.join(sorted(relays))}"
    sessions = answer["sessions"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in sessions["by_reason"].items() if count)
    udp = f" ({sessions['active_udp']} UDP)" if sessions.get("active_udp") else ""
    yield (
        f"sessions: {sessions['active']} active{udp}, {sessions['total']} in all{f' ({reasons})' if reasons else ''}, "
        f"{shown_size(sessions['bytes_up'])} up, {shown_size(sessions['bytes_down'])} down"
    )


def _service(service: Mapping[str, Any]) -> str:
    nodes = [str(Address(node["host"], node["port"])) for node in service["nodes"]]
    more = f" and {len(nodes) - _MAX_NODES} more" if len(nodes) > _MAX_NODES else ""
    line = f"service {service['service_name']}: {', '.join(nodes[:_MAX_NODES]) or 'no node'}{more}"
    return click.style(f"{line} ({service['trouble']})", fg="red") if service["trouble"] else line


def _place(problem: Mapping[str, Any]) -> str:
    names = ("file", "line", "column", "pointer", "message")
    return str(Problem(**{name: problem[name] for name in names}))
