"""Which route a client gets, and why."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from streamgw.core.model import Facts, PrereadPlan, Route


@attrs.frozen
class Verdict:
    """What became of one candidate."""

    route: Route
    wins: bool
    why: str


@attrs.frozen
class Explanation:
    """The decision for one client: the winner, and every candidate in the order tried."""

    winner: Route | None
    verdicts: tuple[Verdict, ...]


class Router:
    """Chooses a route."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)

    def plan(self, facts: Facts) -> PrereadPlan:
        """Which facts could still change the answer for this client."""
        del facts
        return PrereadPlan.NONE

    def match(self, facts: Facts) -> Route | None:
        """The route this client gets, or None."""
        raise NotImplementedError

    def explain(self, facts: Facts) -> Explanation:
        """The winner and why the others are not."""
        raise NotImplementedError

    def shadowed(self) -> tuple[tuple[Route, Route], ...]:
        """Routes that can never win, each with the earlier route that hides it."""
        raise NotImplementedError
