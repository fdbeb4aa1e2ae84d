"""How long one match takes with 10, 1,000 and 100,000 routes: `python -m bench.router`.

"one listener": every route asks for the same port and another client network. "across ports": every route asks for
another port and server address. "nested": client
networks of 17 prefix lengths, more shapes than real tables have. Twenty thousand clients, so that their addresses have to
be parsed. A scan over the same routes, with the function behind `explain`, stands beside the index.
"""

from __future__ import annotations

import ipaddress
import random
import statistics
import timeit
from collections.abc import Callable

from streamgw.core.model import Address, Facts, Match, PortRange, Route, Source
from streamgw.core.router import Router, why_not

SEED = 7
CLIENTS = 20_000


def network(number: int, bits: int = 32) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((number >> (32 - bits) << (32 - bits), bits))


def on_one_listener(at: int) -> Match:
    return Match(remote_addrs=(network(0x0A000000 + at * 256, 24),), server_ports=(PortRange(9100, 9100),))


def across_ports(at: int) -> Match:
    port = 1024 + at % 60000
    return Match(server_addrs=(network(0x7F000001 + at // 60000),), server_ports=(PortRange(port, port),))


def nested(at: int) -> Match:
    return Match(remote_addrs=(network(at * 2654435761 % 2**32, 16 + at % 17),))


def client(match: Match, rng: random.Random) -> Facts:
    """A client that this route was written for."""
    host = (
        match.remote_addrs[0][rng.randrange(match.remote_addrs[0].num_addresses)]
        if match.remote_addrs
        else "10.1.2.3"
    )
    server = match.server_addrs[0][0] if match.server_addrs else "127.0.0.1"
    port = match.server_ports[0].first if match.server_ports else 9100
    return Facts("tcp", "tcp *:9100", Address(str(host), 40000), Address(str(server), port))


def measure(build: Callable[[int], Match], count: int) -> str:
    rng = random.Random(SEED)
    routes = [Route(str(at), build(at), None, Source("routes.d/a.yaml", at + 1)) for at in range(count)]
    built_s = timeit.timeit(lambda: Router(routes), number=1)
    router = Router(routes)
    clients = [client(rng.choice(routes).match, rng) for _ in range(CLIENTS)]
    per_match = [
        timeit.timeit(lambda: [router.match(facts) for facts in clients], number=1) / CLIENTS
        for _ in range(3)
    ]
    shadowed_s = timeit.timeit(router.shadowed, number=1)
    explain_s = timeit.timeit(lambda: router.explain(clients[0]), number=1)
    scanned = clients[: max(1, 20_000 // count)]
    scan_s = timeit.timeit(
        lambda: [next(r for r in routes if why_not(r, f) is None) for f in scanned], number=1
    )
    return (
        f"{build.__name__:16} {count:>8,} {statistics.median(per_match) * 1e6:>9.2f} {scan_s / len(scanned) * 1e6:>11,.0f}"
        f" {built_s * 1e3:>9,.1f} {shadowed_s * 1e3:>12,.1f} {explain_s * 1e3:>11,.1f}"
    )


def main() -> None:
    print(
        f"{'routes':16} {'count':>8} {'match µs':>9} {'scan µs':>11} {'build ms':>9} {'shadowed ms':>12} {'explain ms':>11}"
    )
    for build in (on_one_listener, across_ports, nested):
        for count in (10, 1_000, 100_000):
            print(measure(build, count), flush=True)


if __name__ == "__main__":
    main()
