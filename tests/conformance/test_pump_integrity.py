"""Ten thousand sessions of every kind at once: each byte of each is the right one, and each end is the right end."""

from __future__ import annotations

import collections
import json
import os
import random
import socket
import subprocess
import sys

import pytest
import trio

from streamgw.core.errors import PeerReset, Reason
from streamgw.core.model import Address
from streamgw.dataplane.pump import End, Ending, Limits, Meter, sockmap
from tests.support.bridge import Way, open_pump, skip_unless_possible
from tests.support.peers import plan_for
from tests.support.tls_talker import CARELESS, SERVER

pytestmark = pytest.mark.slow

CONNECTIONS = 10_000
TLS_CONNECTIONS = 1000


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("concurrent", "splice_after"), [(64, 1), (256, 4)])
async def test_ten_thousand_sessions_move_every_byte_and_end_as_their_peers_ended_them(
    concurrent: int, splice_after: int
) -> None:
    await run_peers(CONNECTIONS // 2, concurrent, Way(splice_after))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "way",
    [Way(client_tls=True), Way(upstream_tls=True), Way(client_tls=True, upstream_tls=True)],
    ids=["tls-plain", "plain-tls", "tls-tls"],
)
async def test_sessions_over_tls_move_every_byte_and_end_as_their_peers_ended_them(way: Way) -> None:
    await run_peers(TLS_CONNECTIONS, 32, way)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("concurrent", "promote_after", "credit_bytes"),
    [(4, 1, sockmap.CREDIT_BYTES), (64, sockmap.PROMOTE_AFTER, sockmap.CREDIT_BYTES), (256, 1, 5000)],
    ids=["at-once", "late", "little-credit"],
)
async def test_sessions_that_the_kernel_passes_on_move_every_byte_and_end_as_their_peers_ended_them(
    monkeypatch: pytest.MonkeyPatch, concurrent: int, promote_after: int, credit_bytes: int
) -> None:
    """`STREAMGW_SOCKMAP_SESSIONS=24000 pytest tests/conformance/test_pump_integrity.py -k kernel` is the gate of sockmap."""
    connections = int(os.environ.get("STREAMGW_SOCKMAP_SESSIONS", "1000")) // 3
    if credit_bytes < sockmap.CREDIT_BYTES:
        monkeypatch.setattr(sockmap, "BULK_S", 0.0)  # leased again and again

    await run_peers(
        connections,
        concurrent,
        skip_unless_possible(Way(in_kernel=True)),
        promote_after=promote_after,
        credit_bytes=credit_bytes,
    )


async def run_peers(
    connections: int,
    concurrent: int,
    way: Way,
    *,
    promote_after: int = sockmap.PROMOTE_AFTER,
    credit_bytes: int = sockmap.CREDIT_BYTES,
) -> None:
    """All sessions of one plan, and what is to be said of them."""
    seed = int(os.environ.get("STREAMGW_SEED", "0")) or random.randrange(1 << 31)
    print(f"STREAMGW_SEED={seed}")  # noqa: T201  shown by pytest when the test fails, to replay it
    reasons: collections.Counter[str] = collections.Counter()
    tls = "client" * way.client_tls + "+" + "upstream" * way.upstream_tls

    async with (
        open_pump(splice_after=way.splice_after, in_kernel=way.in_kernel) as pump,
        trio.open_nursery() as nursery,
    ):
        command = [
            sys.executable,
            "-m",
            "tests.support.peers",
            str(seed),
            str(connections),
            str(concurrent),
            tls,
        ]
        peers = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert peers.stdin is not None
        assert peers.stdout is not None
        node = Address("127.0.0.1", int(await peers.stdout.receive_some()))

        async def relay(client: End) -> Ending:
            deadline = trio.current_time() + 200
            if way.client_tls:
                await pump.handshake(client, SERVER, server_side=True, deadline=deadline)
            upstream = pump.dial(node, preface=b"", deadline=deadline)
            if way.upstream_tls:
                await pump.connected(upstream)
                await pump.handshake(upstream, CARELESS, server_side=False, deadline=deadline)
            return await pump.relay(client, upstream, Meter(), Limits())

        async def session(client: End) -> None:
            try:
                ending = await relay(client)
            except PeerReset:
                ending = Ending(Reason.RESET, "client")
                pump.close(client)
            reasons[f"{ending.reason} {ending.side}"] += 1

        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
            accepting = pump.listen(listening, lambda end, _c, _s: nursery.start_soon(session, end))
            await peers.stdin.send_all(f"{listening.getsockname()[1]}\n".encode())
            result = json.loads(b"".join([chunk async for chunk in peers.stdout]))
            await peers.wait()
            await peers.stdin.aclose()
            await peers.stdout.aclose()
            accepting.close()

    assert result["failures"] == []
    planned = collections.Counter(plan_for(seed, number).kind for number in range(connections))
    assert result["well"] == planned
    resets = {side: planned[f"{side} resets"] for side in ("client", "upstream")}
    assert result["nameless"] <= resets["client"]
    assert reasons == {
        f"{Reason.CLOSED} None": connections - sum(resets.values()),
        **{f"{Reason.RESET} {side}": count for side, count in resets.items()},
    }
    if pump.kernel is None:
        assert bool(pump.splices) == way.splices
    else:
        assert pump.kernel.leases > connections / 20
        assert pump.kernel.promoted == {}
