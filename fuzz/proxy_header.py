"""Search for a PROXY header that breaks a promise: python -m fuzz.proxy_header [libFuzzer options] [corpus directory]."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["streamgw"]):
    from fuzz.invariants import check_proxy_header


def test_one_input(data: bytes) -> None:
    """Called by libFuzzer with whatever it thinks of next; an exception is a finding."""
    check_proxy_header(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
