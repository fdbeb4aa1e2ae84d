"""`udp` of a route: how long its UDP sessions live and what they may do. Ours; APISIX has nothing of the kind.

Source:
  nginx `proxy_responses` and `proxy_requests` for what the counts mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, TypeAlias

import attrs

from streamgw.config.rules import Count, PositiveSeconds, number
from streamgw.config.strict import Fault
from streamgw.core.model import DatagramRules

Ratio: TypeAlias = Annotated[float, number(0)]


@attrs.frozen(kw_only=True)
class DatagramSpec:
    """Rules for UDP sessions: `core.model.DatagramRules` says what each means."""

    idle_timeout: PositiveSeconds | None = None
    responses: Count | None = None
    requests: Count = 0
    amplification: Ratio = 0.0

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect."""
        if self.responses == 0:
            for name in ("requests", "amplification"):
                if getattr(self, name):
                    message = (
                        "does nothing with 'responses: 0': a session is one datagram, and nothing comes back"
                    )
                    yield Fault((name,), message, at_key=True)
        elif 0 < self.amplification < 1:
            message = f"an answer as long as its question is dropped until the client sends again; expected 0 or ≥ 1, got {self.amplification:g}"
            yield Fault(("amplification",), message)

    def build(self) -> DatagramRules:
        """The rules as the data plane knows them."""
        return DatagramRules(
            idle_s=self.idle_timeout,
            responses=self.responses,
            requests=self.requests,
            amplification=self.amplification,
        )
