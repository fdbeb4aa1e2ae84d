"""Write a first corpus, so that a fuzzer begins with bytes that mean something: python -m fuzz.seeds DIRECTORY."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

from streamgw.core.model import Address
from streamgw.core.wire.proxy_protocol import build_v1, build_v2


def client_hellos() -> dict[str, bytes]:
    """What this machine's OpenSSL says first, and the same in records of few bytes."""
    found = {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        sent = ssl.MemoryBIO()
        client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="a.test.com")
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            hello = sent.read()
        found[version.name] = hello
        found[f"{version.name}-cut"] = b"".join(
            b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part
            for part in (hello[at : at + 16] for at in range(5, len(hello), 16))
        )
    return found


def proxy_headers() -> dict[str, bytes]:
    """One of each version and family."""
    client, server = Address("198.51.100.7", 56324), Address("203.0.113.1", 443)
    client6 = Address("2001:db8::1", 56324)
    return {
        "v1-tcp4": build_v1(client, server),
        "v1-tcp6": build_v1(client6, server),
        "v1-unknown": b"PROXY UNKNOWN\r\n",
        "v2-inet": build_v2(client, server),
        "v2-inet6": build_v2(client6, server, transport="udp"),
        "v2-tlv": build_v2(client, server, tlvs=((0x02, b"a.test.com"), (0x05, bytes(16)))),
    }


def mqtt_connects() -> dict[str, bytes]:
    """One of each version, as mosquitto_pub says it."""
    return {
        "3.1": bytes.fromhex("1016 0006 4d5149736470 03 02 003c 0008 73656e736f722d31"),
        "3.1.1": bytes.fromhex("1014 0004 4d515454 04 02 003c 0008 73656e736f722d31"),
        "5": bytes.fromhex("101a 0004 4d515454 05 02 003c 05 110000003c 0008 73656e736f722d31"),
    }


def main(directory: Path) -> None:
    """One directory per fuzzer below this one."""
    targets = {
        "client_hello": client_hellos(),
        "proxy_header": proxy_headers(),
        "mqtt_connect": mqtt_connects(),
    }
    for target, seeds in targets.items():
        (directory / target).mkdir(parents=True, exist_ok=True)
        for name, seed in seeds.items():
            (directory / target / name).write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
