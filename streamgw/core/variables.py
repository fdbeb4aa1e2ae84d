"""nginx's and APISIX's variables of a session, as far as they are known before anything is relayed: out of its facts.

What chash hashes by, what plugins count by and compare. What is known only at the end (`$status`, `$bytes_sent`, …) is in
`core/access_log.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from streamgw.core.model import ClientCertificate, Facts

Variable: TypeAlias = Callable[[Facts], str | None]
"""None: this client has no such value."""

ROUTE_VARIABLES = ("route_id", "route_name", "service_id", "service_name")
"""Not in the facts: whoever knows the route gives them as `known`."""


def lookup(name: str, known: Mapping[str, str] | None = None) -> Variable | None:
    """How the value of a variable is had; None if there is no variable of that name.

    Args:
      name: without `$`.
      known: variables whose value does not depend on the client: `route_id`, `hostname`. An empty value is none.
    """
    if known is not None and name in known:
        value = known[name] or None
        return lambda _: value
    return _VARIABLES.get(name)


NAMES: frozenset[str]
"""Every variable that `lookup` has without being told any."""


class UnknownVariable(ValueError):
    """A template names a variable that there is not."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown variable ${name}")
        self.name = name


@attrs.frozen(eq=False)
class Template:
    r"""Text with variables: `$remote_addr:$server_port`, `${remote_addr}`, `${mqtt_client_id ?? nobody}`; `\$` is a dollar."""

    text: str
    """As written."""
    names: tuple[str, ...]
    """The variables in it, in order."""
    _parts: tuple[str | Variable, ...] = attrs.field(repr=False)

    def __call__(self, facts: Facts) -> str | None:
        """The text for a client. A variable without a value is empty; None if none of them has one."""
        values: list[str] = []
        resolved = False
        for part in self._parts:
            if isinstance(part, str):
                values.append(part)
            elif (value := part(facts)) is not None:
                values.append(value)
                resolved = True
        return "".join(values) if resolved else None


def compile_template(text: str, known: Mapping[str, str] | None = None) -> Template:
    """A template, ready to be asked for each client. One without any variable is always None.

    Raises:
      UnknownVariable: one of its variables does not exist.

    Source:
      APISIX `core.utils.resolve_var`.
    """
    names: list[str] = []
    parts: list[str | Variable] = []
    end = 0
    for found in _VARIABLE.finditer(text):
        name, default = found[1] or found[3], found[2]
        variable = lookup(name, known)
        if variable is None:
            raise UnknownVariable(name)
        names.append(name)
        parts += [_plain(text[end : found.start()]), variable if default is None else _or(variable, default)]
        end = found.end()
    parts.append(_plain(text[end:]))
    return Template(text, tuple(names), tuple(part for part in parts if part))


_VARIABLE = re.compile(r"(?<!\\)\$(?:\{\s*(\w+)\s*(?:\?\?\s*([^}]*?)\s*)?\}|(\w+))", re.ASCII)


def _plain(text: str) -> str:
    return text.replace(r"\$", "$")


def _or(variable: Variable, default: str) -> Variable:
    def value(facts: Facts) -> str | None:
        found = variable(facts)
        return default if found is None else found

    return value


def _of_certificate(show: Callable[[ClientCertificate], str]) -> Variable:
    def value(facts: Facts) -> str | None:
        certificate = facts.client_certificate
        return None if certificate is None else show(certificate) or None

    return value


_VARIABLES: Mapping[str, Variable] = {
    "remote_addr": lambda facts: facts.client.host,
    "remote_port": lambda facts: str(facts.client.port),
    "server_addr": lambda facts: facts.server.host,
    "server_port": lambda facts: str(facts.server.port),
    "protocol": lambda facts: facts.transport.upper(),
    "realip_remote_addr": lambda facts: (facts.peer or facts.client).host,
    "realip_remote_port": lambda facts: str((facts.peer or facts.client).port),
    "proxy_protocol_addr": lambda facts: None if facts.peer is None else facts.client.host,
    "proxy_protocol_port": lambda facts: None if facts.peer is None else str(facts.client.port),
    "ssl_server_name": lambda facts: facts.server_name,
    "ssl_client_s_dn": _of_certificate(lambda certificate: certificate.subject),
    "ssl_client_serial": _of_certificate(lambda certificate: certificate.serial.upper()),
    "mqtt_client_id": lambda facts: facts.mqtt_client_id or None,
    # Ours.
    "listener": lambda facts: facts.listener,
    "client_fingerprint": _of_certificate(lambda certificate: certificate.fingerprint),
    "client_sans": _of_certificate(lambda certificate: ",".join(certificate.sans)),
}

NAMES = frozenset(_VARIABLES)
