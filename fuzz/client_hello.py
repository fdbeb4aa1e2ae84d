"""Search for a ClientHello that breaks a promise: python -m fuzz.client_hello [libFuzzer options] [corpus directory]."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["streamgw"]):
    from fuzz.invariants import check_client_hello


def test_one_input(data: bytes) -> None:
    """Called by libFuzzer with whatever it thinks of next; an exception is a finding."""
    check_client_hello(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
