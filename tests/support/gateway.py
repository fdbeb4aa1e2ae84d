"""`streamgw run` as a user would start it: a directory with files, a child process, its status endpoint."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import yaml

from tests.support.child import Child, run, running
from tests.support.ports import Ports

STREAMGW = (sys.executable, "-m", "streamgw")
ANSWER_S = 30.0
"""For one answer of a server of its own."""
READY_S = 90.0
"""Every worker is a process that takes a second of CPU to start, and the machine may be busy."""
_WORKERS = (
    {"workers": int(os.environ["STREAMGW_TEST_WORKERS"])} if "STREAMGW_TEST_WORKERS" in os.environ else {}
)
"""So that any story can be told of a gateway with several workers, too."""
Document = Mapping[str, object]
Status = Mapping[str, Any]


def stream_route(id: str, upstream_port: int, **match: object) -> dict[str, object]:  # noqa: A002 - the wire name
    """One stream route to one node on 127.0.0.1, as it stands under `stream_routes:`."""
    upstream = {"type": "roundrobin", "nodes": {f"127.0.0.1:{upstream_port}": 1}}
    return {"id": id, **match, "upstream": upstream}


class Gateway:
    """A directory with `conf/config.yaml` and `routes.d`, and the gateway that runs on it.

    Files may be written before and after `running`; nothing is sent to the process but what a user could send.
    """

    def __init__(self, directory: Path, ports: Ports) -> None:
        self.directory = directory
        self.config = directory / "conf" / "config.yaml"
        self.routes = directory / "routes.d"
        self.access_log = directory / "access.log"
        self.status_port = ports.take()
        self.control_port = ports.take()
        self.metrics_port = ports.take()
        self.child: Child | None = None
        self.config.parent.mkdir(parents=True)
        self.routes.mkdir()

    # Files

    def write_settings(self, tcp: Sequence[object], udp: Sequence[object] = (), **sections: object) -> None:
        """Write conf/config.yaml.

        Args:
          tcp: the entries of `apisix.stream_proxy.tcp`.
          udp: those of `apisix.stream_proxy.udp`. With any, a gateway that is stopped cuts what lives, unless `sections`
            say otherwise: a UDP session would live until it has been idle for long.
          sections: further top-level sections, as they stand in the file.
        """
        document: dict[str, Mapping[str, object]] = {
            "apisix": {
                "stream_proxy": {"tcp": list(tcp), "udp": list(udp)},
                "status": {"ip": "127.0.0.1", "port": self.status_port},
                "control": {"port": self.control_port},
            },
            "plugin_attr": {"prometheus": {"export_addr": {"port": self.metrics_port}}},
            "streamgw": {"access_log": {"path": str(self.access_log)}, **_WORKERS},
        }
        if udp:
            document["nginx_config"] = {"worker_shutdown_timeout": 0}
        for name, section in sections.items():
            assert isinstance(section, Mapping)
            document[name] = {**document.get(name, {}), **section}
        write_atomically(self.config, yaml.safe_dump(document))

    def write_routes(self, name: str, *routes: Document, **collections: Sequence[Document]) -> None:
        """Write one file below routes.d."""
        document = {"stream_routes": list(routes), **collections} if routes else dict(collections)
        write_atomically(self.routes / name, yaml.safe_dump(document))

    # The process

    @contextlib.contextmanager
    def running(
        self, *, prefix: Sequence[str] = (), wait: bool = True, stderr: int = STDOUT
    ) -> Iterator[Child]:
        """Start it, wait until it is ready, and end it when the block is left.

        Args:
          prefix: words before the command: `prlimit`, `nsenter`.
          wait: False for a gateway that must refuse to start.
          stderr: a descriptor, if the application log should not be in the log of the child.
        """
        command = [*prefix, *STREAMGW, "run", "-c", "conf/config.yaml", "-r", "routes.d"]
        log = self.directory / "streamgw.log"
        with running(
            command, log=log, name="streamgw", cwd=self.directory, env=PLAIN, stderr=stderr
        ) as child:
            self.child = child
            if wait:
                child.wait_until(self.is_ready, what="is ready", timeout_s=READY_S)
            yield child

    def cli(self, *arguments: str, check: bool = True) -> str:
        """Run another `streamgw` command in this directory; return what it printed."""
        done = run([*STREAMGW, *arguments], cwd=self.directory, env=PLAIN, check=check)
        return done.stdout + done.stderr

    # What it says about itself

    def is_ready(self) -> bool:
        """Whether `/status/ready` says 200."""
        try:
            with urllib.request.urlopen(self._url("/status/ready"), timeout=ANSWER_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def status(self) -> Status:
        """The body of `/streamgw/v1/status`."""
        with urllib.request.urlopen(self._url("/streamgw/v1/status"), timeout=ANSWER_S) as answer:
            body: Status = json.load(answer)
            return body

    def wait_for_status(self, look: Callable[[Status], bool], *, what: str) -> Status:
        """Wait until the status is as it should be, and return it."""
        assert self.child is not None

        def seen() -> Status | None:
            status = self.status()
            return status if look(status) else None

        return self.child.wait_until(seen, what=what)

    def wait_for_objects(self, *ids: str) -> Status:
        """Wait until exactly these stream routes are in effect."""
        wanted = set(ids)
        return self.wait_for_status(
            lambda status: set(status["objects"].get("stream_routes", {})) == wanted,
            what=f"stream routes {sorted(wanted)} in effect",
        )

    def metric(self, sample: str) -> float | None:
        """The value of one sample, `name{label="value"}`; None: there is none."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.metrics_port}/apisix/prometheus/metrics", timeout=ANSWER_S
        ) as answer:
            lines = answer.read().decode().splitlines()
        values = (line.removeprefix(f"{sample} ") for line in lines if line.startswith(f"{sample} "))
        return next(map(float, values), None)

    def wait_for_metric(self, sample: str, value: float) -> None:
        """Wait until a sample has this value."""
        assert self.child is not None
        self.child.wait_until(lambda: self.metric(sample) == value, what=f"{sample} {value:g}")

    def access_lines(self) -> list[dict[str, Any]]:
        """The access log so far, parsed."""
        if not self.access_log.exists():
            return []
        whole, _, _ = self.access_log.read_text().rpartition("\n")  # the rest is being written
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for_access_line(
        self, look: Callable[[Mapping[str, Any]], bool], *, what: str
    ) -> Mapping[str, Any]:
        """Wait until a session that fits has ended, and return its line."""
        assert self.child is not None
        return self.child.wait_until(
            lambda: next((line for line in self.access_lines() if look(line)), None),
            what=f"an access log line: {what}",
        )

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.status_port}{path}"


PLAIN = {"PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1", "PYTHONWARNINGS": "error"}
"""Environment of every child: this source tree, no colours, and a ResourceWarning is a failure."""


def write_atomically(path: Path, text: str) -> None:
    """Put a file in place in one step, the way editors and `git checkout` do: nobody can read half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
