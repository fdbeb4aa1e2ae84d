"""What workers have counted: the latest that is known of each, and what those left behind that are gone."""

from __future__ import annotations

from collections.abc import Callable

from streamgw.process import figures, status
from streamgw.process.figures import LOST, Share
from streamgw.process.members import Member
from streamgw.process.status import WorkerStatus


class Books:
    """Kept as long as the gateway runs. Sums never go back: a worker that does not answer counts as it last did.

    Args:
      own: what has been counted outside the workers.
    """

    def __init__(self, own: Callable[[], Share] | None = None) -> None:
        self._own = own
        self._shares: dict[Member, Share] = {}
        self._statuses: dict[Member, WorkerStatus] = {}
        """Of those that are open."""
        self._final: set[Member] = set()
        """Of those: who has said its last."""
        self._past_share: Share | None = None
        self._past_status: WorkerStatus | None = None

    def open(self, member: Member) -> None:
        """A worker begins."""
        self._shares[member], self._statuses[member] = Share(), WorkerStatus()

    def close(self, member: Member) -> None:
        """It is gone. Its counts stay; sessions that it had have ended with it."""
        share = figures.left_behind(self._shares.pop(member))
        said = status.left_behind(self._statuses.pop(member), LOST)
        self._final.discard(member)
        past, before = self._past_share, self._past_status
        self._past_share = share if past is None else figures.left_behind(figures.add_up([past, share]))
        self._past_status = said if before is None else status.add_up([before, said])

    def note(
        self,
        member: Member,
        *,
        share: Share | None = None,
        said: WorkerStatus | None = None,
        is_final: bool = False,
    ) -> None:
        """What it has counted by now. None: nothing new.

        One that is closed, or has been noted with `is_final`, has said everything: what comes then was said before, and overtaken
        while whoever asked waited for others.
        """
        if member not in self._shares or member in self._final:
            return
        if is_final:
            self._final.add(member)
        if share is not None:
            self._shares[member] = share
        if said is not None:
            self._statuses[member] = said

    def share(self) -> Share:
        """The sum for the metrics."""
        parts = [*self._shares.values(), self._past_share, self._own() if self._own else None]
        return figures.add_up([part for part in parts if part is not None])

    def status(self) -> WorkerStatus:
        """The sum for `status`."""
        parts = [*self._statuses.values(), self._past_status]
        return status.add_up([part for part in parts if part is not None])
