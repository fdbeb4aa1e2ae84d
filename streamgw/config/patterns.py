r"""Addresses, ports and names as regular expressions: the rules match with them, and editors are told them.

Written so that JavaScript's dialect reads them as Python's does: no `\d` (Unicode
digits in Python), no `\Z`, no named groups. All are without anchors; `whole` adds them.

Source:
  RFC 3986 § 3.2.2 (IPv6address, IPv4address); RFC 1123 § 2.1 (names; `_` is used in practice).
"""

from __future__ import annotations

from typing import Final

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4: Final = rf"(?:{_OCTET}\.){{3}}{_OCTET}"

_H16 = "[0-9A-Fa-f]{1,4}"
_LAST_32 = f"(?:{_H16}:{_H16}|{IPV4})"


def _ipv6() -> str:
    forms = [f"(?:{_H16}:){{6}}{_LAST_32}"]
    # What stands behind `::` decides how much may stand before it.
    behind = [
        *(f"(?:{_H16}:){{{groups}}}{_LAST_32}" for groups in range(5, 0, -1)),
        _LAST_32,
        _H16,
        "",
    ]
    for groups, after in enumerate(behind):
        before = f"(?:(?:{_H16}:){{0,{groups - 1}}}{_H16})?" if groups else ""
        forms.append(f"{before}::{after}")
    return f"(?:{'|'.join(forms)})"


IPV6: Final = _ipv6()
IPV4_NETWORK: Final = f"{IPV4}/(?:3[0-2]|[12]?[0-9])"
IPV6_NETWORK: Final = f"{IPV6}/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
NETWORK: Final = f"(?:{IPV4}|{IPV4_NETWORK}|{IPV6}|{IPV6_NETWORK})"

PORT: Final = "(?:0*[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"

_LABEL = "[0-9A-Za-z_][0-9A-Za-z_-]{0,62}"
NAME: Final = rf"(?:{_LABEL}\.)*{_LABEL}\.?"
HOST: Final = rf"(?:\[{IPV6}\]|{IPV4}|(?![0-9.]+(?::[0-9]*)?$){NAME})"
"""Of a node: an address (IPv6 in brackets) or a name that could not be meant as an address."""
HOST_PORT: Final = f"{HOST}:{PORT}"

ID: Final = r"[a-zA-Z0-9\-_.]{1,64}"


def whole(pattern: str) -> str:
    """For a JSON Schema: all of the text must match."""
    return f"^{pattern}$"
