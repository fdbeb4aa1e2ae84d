"""The gateway as its HTTP side sees it (`control.admin.fleet.Fleet`), when one process serves it all."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs
import trio

from streamgw.config.documents import Document
from streamgw.control.admin.feed import Feed
from streamgw.control.admin.fleet import Figures, SessionFilter, SessionRow
from streamgw.control.explain import accepts, as_data, meet
from streamgw.control.reloader import ReloadStatus
from streamgw.core.model import UNIX_HOST, Address, Facts, Key, Network
from streamgw.core.wire.tls import ClientHello
from streamgw.dataplane.reception import UDPSession
from streamgw.dataplane.session import Session
from streamgw.process.figures import batches, take_figures
from streamgw.process.rows import health_row, session_row
from streamgw.process.status import StatusBoard
from streamgw.process.worker import Worker


class LocalFleet:
    """One worker, in this process.

    Args:
      look_at_settings: begin to read conf/config.yaml again. Must not block.
    """

    def __init__(
        self,
        worker: Worker,
        board: StatusBoard,
        settings_status: Callable[[], ReloadStatus],
        look_at_settings: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._look_at_settings = look_at_settings
        self._documents: Sequence[Document] = ()
        """Of the reloader, when they were put in order."""
        self._in_order: Sequence[Document] = ()
        self._board = board
        self._settings_status = settings_status

    def ready(self) -> bool:
        """Whether clients are accepted."""
        return self._board.ready()

    def status(self) -> Mapping[str, object]:
        """As the status endpoint says."""
        return self._board.status()

    def listeners(self) -> Sequence[Mapping[str, object]]:
        """As in `status`."""
        return self._board.listeners()

    async def sessions(self, wanted: SessionFilter) -> tuple[Sequence[SessionRow], int]:
        """Live sessions, oldest first, and how many there are of them."""
        rows: list[SessionRow] = []
        total = 0
        fits = _filter(wanted)
        for batch in batches(self._worker):
            for session in filter(fits, batch):
                total += 1
                if len(rows) < wanted.limit:
                    rows.append(session_row(session, trio.current_time()))
            await trio.lowlevel.checkpoint()
        return rows, total

    async def kill(self, session_id: str) -> bool:
        """End one session. False: there is none of that id."""
        return self._worker.sessions.kill(session_id) or self._worker.udp.kill(session_id)

    def explain(self, facts: Facts) -> Mapping[str, object]:
        """What becomes of such a client, by the code that `streamgw explain` runs."""
        bound = self._worker.sockets.bound()
        listener = next((each for each in bound if accepts(each, facts.server, facts.transport)), None)
        said = None
        if facts.server_name is not None or facts.alpn:
            said = ClientHello(facts.server_name, facts.alpn, ())
        facts = attrs.evolve(facts, listener=listener.name if listener else "", server_name=None, alpn=())
        reloader = self._worker.reloader
        return as_data(meet(listener, facts, said, reloader.current, reloader.documents))

    def health(self) -> Sequence[Mapping[str, object]]:
        """In APISIX's form, and ours added: `upstream`, and of a node `is_up`, `is_ejected` and `why`."""
        return [health_row(checker) for checker in self._worker.prober.checkers.values()]

    def documents(self) -> Sequence[Document]:
        """What runs."""
        reloader = self._worker.reloader
        if reloader.documents is not self._documents:
            ranks = {route.id: rank for rank, route in enumerate(reloader.current.router.routes)}
            last = len(ranks)  # disabled
            self._documents = reloader.documents
            self._in_order = sorted(
                reloader.documents,
                key=lambda each: ranks.get(each.key[1], last) if each.key[0] == "stream_routes" else last,
            )
        return self._in_order

    def reload(self) -> None:
        """As SIGHUP does."""
        self._worker.reloader.poke()
        self._look_at_settings()

    def poke(self) -> None:
        """Run what was written, now."""
        self._worker.reloader.poke_written()

    async def wait_applied(self, key: Key, digest: str | None, deadline: float) -> Sequence[int]:
        """Empty once the object runs; at the deadline: this worker does not."""
        with trio.move_on_at(deadline):
            await self._worker.reloader.wait_applied(key, digest)
            return ()
        return (0,)

    def subscribe(self, kinds: Collection[str], wanted: Mapping[str, str]) -> Feed:
        """Hear what happens from now on."""
        return self._worker.hub.subscribe(kinds, wanted)

    async def figures(self) -> Figures:
        """What the metrics show."""
        return await take_figures(self._worker, self._settings_status())


def _filter(wanted: SessionFilter) -> Callable[[Session | UDPSession], bool]:
    """The wishes that are not empty."""
    network = ipaddress.ip_network(wanted.client, strict=False) if wanted.client else None
    tests: list[Callable[[Session | UDPSession], bool]] = []
    if wanted.listener:
        tests.append(lambda session: session.listener.name == wanted.listener)
    if wanted.transport:
        tests.append(lambda session: session.facts.transport == wanted.transport)
    if wanted.route:
        tests.append(lambda session: session.route is not None and session.route.id == wanted.route)
    if wanted.upstream:
        tests.append(lambda session: session.upstream is not None and session.upstream.key == wanted.upstream)
    if wanted.node:
        tests.append(lambda session: str(session.trail.node) == wanted.node)
    if network is not None:
        tests.append(lambda session: _is_in(session.facts.client, network))
    return lambda session: all(test(session) for test in tests)


def _is_in(address: Address, network: Network) -> bool:
    return address.host != UNIX_HOST and ipaddress.ip_address(address.host) in network
