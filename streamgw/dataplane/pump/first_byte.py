"""How long a node takes to its first byte, for whoever prefers quick ones (`ewma`).

Counted from when it could begin to answer: from the connect (with its TLS handshake), or from when the first bytes of the
client were handed on, if that came later. So a client that thinks for an hour does not count against the node, and a node
that speaks first (MySQL, SSH) is measured too. A session is measured once. No measure comes of one that ends before the first
byte, nor of one that had to wait for a gate until then: that time is the gateway's own.

Watched after each turn of either direction, in what the meter says: it knows no PROXY header, and plain text only. Until it is
over neither end takes the fast path, so that nobody else's bytes pay for it.
"""

from __future__ import annotations

import attrs

from streamgw.dataplane.pump import Meter, OnFirstByte


@attrs.define(eq=False, weakref_slot=False)
class FirstByte:
    """The wait for it, in one session."""

    tell: OnFirstByte
    since: float
    """When the node could begin to answer (trio.current_time())."""
    is_asked: bool = False

    def has_come(self, meter: Meter, now: float) -> bool:
        """Look at what has moved. True: it is over, and was told."""
        if meter.bytes_down:
            self.tell(now - self.since)
            return True
        if meter.bytes_up and not self.is_asked:
            self.is_asked, self.since = True, now
        return False
