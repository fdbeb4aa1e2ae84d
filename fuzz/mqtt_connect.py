"""Search for an MQTT CONNECT that breaks a promise: python -m fuzz.mqtt_connect [libFuzzer options] [corpus directory]."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["streamgw"]):
    from fuzz.invariants import check_mqtt_connect


def test_one_input(data: bytes) -> None:
    """Called by libFuzzer with whatever it thinks of next; an exception is a finding."""
    check_mqtt_connect(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
