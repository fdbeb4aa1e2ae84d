"""Names for tests: a scripted lookup on the test's clock, and a small DNS server on a real socket."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zone
import trio
import trio.testing

from streamgw.core.model import Address
from streamgw.dataplane.refresher import Answer, LookupFailed

Script = Answer[str] | LookupFailed | Sequence[Answer[str] | LookupFailed]


class FakeLookup:
    """Answers by script: one answer for ever, or one after the other, the last one for ever."""

    def __init__(self, script: Mapping[str, Script], *, takes_s: float = 0.0) -> None:
        self._script = script
        self._takes_s = takes_s
        self._asked_at: list[tuple[str, float]] = []
        self._asked_more = trio.Event()
        self.under_way = 0

    async def __call__(self, name: str) -> Answer[str]:
        self._asked_at.append((name, trio.current_time()))
        self._asked_more.set()
        self._asked_more = trio.Event()
        self.under_way += 1
        try:
            await trio.sleep(self._takes_s)
        finally:
            self.under_way -= 1
        script = self._script[name]
        if isinstance(script, Sequence):
            script = script[min(len(self.times(name)), len(script)) - 1]
        if isinstance(script, LookupFailed):
            raise script
        return script

    @property
    def asked(self) -> list[str]:
        return [name for name, _ in self._asked_at]

    def times(self, name: str) -> list[float]:
        """When the name was asked for, in seconds after the very first question."""
        return [at - self._asked_at[0][1] for asked, at in self._asked_at if asked == name]

    async def wait_asked(self, count: int) -> None:
        """Until so many questions were asked in all, and the last one has been dealt with."""
        while len(self._asked_at) < count:
            await self._asked_more.wait()
        await trio.testing.wait_all_tasks_blocked()


class DNSServer:
    """Answers UDP questions from a zone in master-file format.

    Other names do not exist, except that `servfail.*` is answered SERVFAIL and `silent.*` not at all.
    """

    def __init__(self, zone: str) -> None:
        self.publish(zone)
        self.address = Address("127.0.0.1", 0)
        self.asked: list[tuple[str, str]] = []
        self.broken_kinds: set[str] = set()
        self.broken_names: set[str] = set()

    def publish(self, zone: str) -> None:
        """Answer from this zone from now on."""
        self._records = dns.zone.from_text(
            "$ORIGIN .\n" + zone, origin=".", relativize=False, check_origin=False
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", 0))
            self.address = Address("127.0.0.1", sock.getsockname()[1])
            task_status.started()
            while True:
                wire, client = await sock.recvfrom(4096)
                reply = self._reply(dns.message.from_wire(wire))
                if reply is not None:
                    await sock.sendto(reply.to_wire(), client)

    def _reply(self, query: dns.message.Message) -> dns.message.Message | None:
        name, kind = query.question[0].name, query.question[0].rdtype
        self.asked.append((str(name), dns.rdatatype.to_text(kind)))
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        if str(name).startswith("silent."):
            return None
        is_broken = str(name) in self.broken_names or dns.rdatatype.to_text(kind) in self.broken_kinds
        if is_broken or str(name).startswith("servfail."):
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif self._records.get_node(name) is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif alias := self._records.get_rrset(name, "CNAME"):
            reply.answer.append(alias)
            if target := self._records.get_rrset(alias[0].target, kind):
                reply.answer.append(target)
        elif found := self._records.get_rrset(name, kind):
            reply.answer.append(found)
        return reply
