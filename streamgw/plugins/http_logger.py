"""Records of sessions to an HTTP server: a POST of JSON for each batch.

Source:
  APISIX `apisix/plugins/http-logger.lua` (HTTP only there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import attrs

from streamgw.core.batch import OverHTTP
from streamgw.core.hooks import Hooks, Plugin, PluginContext
from streamgw.plugins.options import Fault, Stated, Wrong, integer
from streamgw.plugins.records import HTTPLoggerOptions, LogMetadata, telling

_PORT: Final = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_URI: Final = rf"(https?)://([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::({_PORT}))?([/?][!-\"$-~]*)?"
"""No user and password, which belong into `auth_header`; no fragment, which is not for servers."""
_AUTHORIZATION: Final = r"[!-~](?:[ -~]*[!-~])?"
"""What may stand in a header."""
_MAX_LENGTH: Final = 8192
"""Of each. Servers take no more."""


def _secret(pattern: str, expected: str) -> Stated[str]:
    """Text of a form. No message shows it: addresses of log services have keys in them."""

    def rule(value: object) -> str:
        if type(value) is not str or len(value) > _MAX_LENGTH or not re.fullmatch(pattern, value):
            raise Wrong(f"expected {expected}")
        return value

    schema = {"type": "string", "maxLength": _MAX_LENGTH, "pattern": f"^(?:{pattern})$"}
    return Stated(rule, schema, {"type": "string"})


@attrs.frozen(kw_only=True)
class HTTPLogger(HTTPLoggerOptions):
    """Where the batches go."""

    uri: Annotated[str, _secret(_URI, "an address like https://logs.example/in")] = attrs.field(repr=False)
    auth_header: (
        Annotated[str, _secret(_AUTHORIZATION, "what may stand in a header: printable ASCII")] | None
    ) = attrs.field(default=None, repr=False)
    """`Authorization` of each request."""
    timeout: Annotated[int, integer(1)] = 3
    """Seconds for one batch, answer included."""
    concat_method: Literal["json", "new_line"] = "json"
    ssl_verify: bool = True
    """The server's certificate is checked, by what `apisix.ssl.ssl_trusted_certificate` trusts."""

    def warnings(self) -> Iterator[Fault]:
        """What is written here and has no effect; and whom TLS lets in."""
        if self.uri.startswith("https:") and not self.ssl_verify:
            message = "whoever answers is believed: the server's certificate is not verified"
            yield Fault(("ssl_verify",), message, at_key=True)
        if self.uri.startswith("http:") and self.auth_header is not None:
            yield Fault(("auth_header",), "is sent in the clear: the address is not https", at_key=True)
        yield from HTTPLoggerOptions.warnings(self)


def build(options: HTTPLogger, context: PluginContext) -> Hooks:
    """A request on a connection of its own for each batch."""
    found = re.fullmatch(_URI, options.uri)
    assert found is not None, "the rule has seen it"
    scheme, host, port, target = found.groups()
    is_tls = scheme == "https"
    batch_form: Literal["array", "lines"] = "array" if options.concat_method == "json" else "lines"
    to = OverHTTP(
        host=host.strip("[]"),
        port=int(port) if port else 443 if is_tls else 80,
        target=target if target and target.startswith("/") else f"/{target or ''}",
        tls=is_tls,
        verify=options.ssl_verify,
        authorization=options.auth_header or "",
        form="object" if options.batch_max_size == 1 else batch_form,
    )
    return telling(options, context, to, timeout_s=float(options.timeout))


PLUGIN = Plugin(name="http-logger", priority=410, options=HTTPLogger, build=build, metadata=LogMetadata)
