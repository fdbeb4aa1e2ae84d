"""From the first bytes of a session to facts: a PROXY header, which is taken off, and a ClientHello, which stays."""

from __future__ import annotations

import attrs

from streamgw.core.model import ProxyProtocolIn, TLSIn
from streamgw.core.wire import NeedMore
from streamgw.core.wire.proxy_protocol import ProxyHeader, may_become_proxy_header, parse_proxy_header
from streamgw.core.wire.tls import ClientHello, may_become_client_hello, parse_client_hello


@attrs.frozen
class Preface:
    """What stood before the client's own bytes."""

    consumed: int
    """Bytes to take off the stream, exactly."""
    header: ProxyHeader | None
    """None: there was none, and nothing is to be taken."""


def parse_preface(buffer: bytes, mode: ProxyProtocolIn) -> Preface | NeedMore:
    """Look for the PROXY header that a listener expects.

    With `optional`, a client whose first bytes are no PROXY signature is a plain one. Once the signature is there, the
    rest has to be right in every mode: a broken header passed on as data would let its sender choose what the upstream
    takes for the client's address. The specification (§ 2) forbids guessing because anybody could then name an address;
    here a header is believed only from the listener's trusted peers, in this mode too.

    Returns:
      NeedMore: nothing can be decided yet; always asks for more than `buffer` holds.

    Raises:
      ParseError: not a PROXY header where one has to be, or a broken one.
    """
    if mode == "off" or (mode == "optional" and not may_become_proxy_header(buffer)):
        return Preface(0, None)
    found = parse_proxy_header(buffer)
    if isinstance(found, NeedMore):
        return found
    header, consumed = found
    return Preface(consumed, header)


def parse_hello(buffer: bytes, mode: TLSIn) -> ClientHello | NeedMore | None:
    """Look for the ClientHello that a listener expects. Nothing of it is to be consumed.

    With `optional`, a client whose first bytes are no TLS record is a plain one. Once a record has begun, the rest has
    to be right in every mode: who says TLS and then something else is not passed on as if it had said nothing.

    Returns:
      None: a plain client. NeedMore: nothing can be decided yet; always asks for more than `buffer` holds.

    Raises:
      ParseError: not a ClientHello where one has to be, or a broken one.
    """
    if mode == "off" or (mode == "optional" and not may_become_client_hello(buffer)):
        return None
    return parse_client_hello(buffer)
