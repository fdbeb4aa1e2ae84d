"""What is known of the nodes of one upstream, on a clock that stands still until it is set."""

from __future__ import annotations

from streamgw.core.load import UpstreamLoad
from streamgw.core.model import Address, Node

NODE = Address("10.0.0.1", 80)


def test_a_session_counts_until_its_lease_is_closed() -> None:
    load = UpstreamLoad(lambda: 0.0)

    lease = load.lease(NODE)
    with load.lease(NODE):
        assert load.active(NODE) == 2
    lease.close()
    lease.close()

    assert load.active(Node("10.0.0.1", 80, 5)) == 0
