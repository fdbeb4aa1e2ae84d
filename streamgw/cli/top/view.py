"""What the person at the keyboard wants to see: keys in, a view and wishes out. No terminal here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from streamgw.cli.top.model import SORTS, Model, Session, Sort

Wish = Literal["quit", "kill"]

_NAMES: Final = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
    b"\x15": "clear",
    b"\x03": "interrupt",
}
_KEY: Final = re.compile(rb"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O[ -~]|)|[\x80-\xff]+|.", re.DOTALL)
FILTER_LIMIT: Final = 200
PAGE: Final = 10


def keys_of(data: bytes) -> list[str]:
    """What was pressed: a character each, or the name of a key. What nobody knows is left out.

    A key that sends a sequence (an arrow) comes in one read; a lone ESC is the key.
    """
    found: list[str] = []
    for pressed in _KEY.findall(data):
        if pressed in _NAMES:
            found.append(_NAMES[pressed])
        else:
            found += [
                each for each in pressed.decode(errors="ignore") if len(pressed) < 3 or pressed[0] != 0x1B
            ]
    return [each for each in found if len(each) > 1 or each.isprintable()]


@attrs.define
class View:
    """How the model is looked at, and the prompt at the bottom."""

    sort: Sort = "rate"
    backwards: bool = False
    words: str = ""
    prompt: Literal["", "filter", "kill"] = ""
    chosen: str = ""
    """Id of the session that the cursor is on; empty: none is."""
    victim: Session | None = None
    """Whom the question `kill?` is about."""
    frozen: tuple[Session, ...] | None = None
    """What the list showed when it was paused."""
    message: str = ""
    _before: str = ""

    def shown(self, model: Model, now: float) -> Sequence[Session]:
        """The sessions of the list, in its order."""
        if self.frozen is not None:
            return self.frozen
        return model.listed(self.sort, now=now, words=self.words, backwards=self.backwards)

    def press(self, key: str, model: Model, now: float) -> Wish | None:
        """One key. Kill: the wish is about `victim`."""
        self.message = ""
        if key == "interrupt":
            return "quit"
        if self.prompt == "filter":
            self._type(key)
            return None
        if self.prompt == "kill":
            self.prompt = ""
            return "kill" if key in {"y", "Y"} else None
        if key == "q":
            return "quit"
        self._command(key, model, now)
        return None

    def _type(self, key: str) -> None:
        if key == "enter":
            self.prompt = ""
        elif key == "escape":
            self.prompt, self.words = "", self._before
        elif key == "backspace":
            self.words = self.words[:-1]
        elif key == "clear":
            self.words = ""
        elif len(key) == 1 and len(self.words) < FILTER_LIMIT:
            self.words += key

    def _command(self, key: str, model: Model, now: float) -> None:
        match key:
            case "s":
                self.sort, self.backwards = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], False
            case "r":
                self.backwards = not self.backwards
            case "/":
                self.prompt, self._before = "filter", self.words
            case "escape":
                self.words, self.chosen = "", ""
            case "p" | " ":
                self.frozen = tuple(self.shown(model, now)) if self.frozen is None else None
            case "k":
                self._ask_to_kill(model, now)
            case "up" | "down" | "page up" | "page down" | "home":
                self._move(key, self.shown(model, now))

    def _ask_to_kill(self, model: Model, now: float) -> None:
        self.victim = next((each for each in self.shown(model, now) if each.id == self.chosen), None)
        if self.victim is None:
            self.message = "choose a session with the arrow keys first"
        else:
            self.prompt = "kill"

    def _move(self, key: str, rows: Sequence[Session]) -> None:
        if not rows:
            return
        at = next((number for number, row in enumerate(rows) if row.id == self.chosen), None)
        if at is None or key == "home":
            self.chosen = rows[0].id
            return
        step = {"up": -1, "down": 1, "page up": -PAGE, "page down": PAGE}[key]
        self.chosen = rows[min(max(at + step, 0), len(rows) - 1)].id
