"""What limits count by: a variable, or several in a text; the client's address where they have no value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import attrs

from streamgw.core.hooks import Hook, Hooks
from streamgw.core.model import Facts, Outcome
from streamgw.core.variables import Template, UnknownVariable, compile_template, lookup

KeyType: TypeAlias = Literal["var", "var_combination"]

LATE = frozenset(
    {"mqtt_client_id", "ssl_client_s_dn", "ssl_client_serial", "client_fingerprint", "client_sans"}
)
"""Variables that are known only after a handshake, or once a plugin has looked at the first bytes."""


@attrs.frozen
class Key:
    """How a client is told from others."""

    names: frozenset[str]
    """The variables."""
    _value: Callable[[Facts], str | None] = attrs.field(repr=False)

    def __call__(self, facts: Facts) -> str:
        """The same for all who are counted together. The address of a client that has no value."""
        return self._value(facts) or facts.client.host

    def hooks(self, decide: Hook, on_close: Callable[[Facts, Outcome], None] | None = None) -> Hooks:
        """Decide as soon as the variables are known: before a handshake if that is possible."""
        if self.names & LATE:
            return Hooks(on_preread=decide, on_close=on_close)
        return Hooks(on_accept=decide, on_close=on_close)


def compile_key(key: str, key_type: KeyType, known: Mapping[str, str]) -> Key:
    """The key of a limit.

    Args:
      key: `remote_addr`, or `$remote_addr $server_port` of type var_combination. A variable that there is not has no value.
      key_type: which of the two.
      known: `PluginContext.known`.

    Source:
      APISIX `apisix/plugins/limit-conn/init.lua`: without a value it counts by `remote_addr`.
    """
    if key_type == "var":
        return Key(frozenset({key}), lookup(key, known) or (lambda _: None))
    template = _compile(key, known)
    return Key(frozenset(template.names), template)


def names_of(key: str, key_type: KeyType) -> frozenset[str]:
    """The variables that a key asks for."""
    return compile_key(key, key_type, {}).names


def _compile(text: str, known: Mapping[str, str]) -> Template:
    while True:
        try:
            return compile_template(text, known)
        except UnknownVariable as unknown:
            known = {**known, unknown.name: ""}
