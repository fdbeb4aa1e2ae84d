from __future__ import annotations

import pytest

from streamgw.core.model import UNIX_HOST, Address, Listener, Source


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("127.0.0.1", 80), "127.0.0.1:80"),
        (Address("::1", 80), "[::1]:80"),
        (Address(UNIX_HOST, 0), "unix::0"),
        (Address("db.example", 3306), "db.example:3306"),
    ],
)
def test_an_address_prints_as_people_write_it(address: Address, text: str) -> None:
    assert str(address) == text


@pytest.mark.parametrize(
    ("source", "text"), [(Source("a.yaml", 8), "a.yaml:8"), (Source("a.json", 0), "a.json")]
)
def test_a_source_prints_with_its_line_if_it_has_one(source: Source, text: str) -> None:
    assert str(source) == text


@pytest.mark.parametrize(
    ("listener", "name"),
    [
        (Listener("tcp", "127.0.0.1", 9101), "tcp 127.0.0.1:9101"),
        (Listener("tcp", "::1", 9100), "tcp [::1]:9100"),
        (Listener("tcp", "::", 9100, dual_stack=True), "tcp *:9100"),
        (Listener("tcp", UNIX_HOST, 0, path="/run/x"), "tcp unix:/run/x"),
    ],
)
def test_a_listener_is_named_after_its_socket(listener: Listener, name: str) -> None:
    assert listener.name == name


def test_options_of_a_listener_are_no_part_of_its_name() -> None:
    plain = Listener("tcp", "127.0.0.1", 9101)
    other = Listener("tcp", "127.0.0.1", 9101, proxy_protocol="required", max_sessions=5)

    assert plain.name == other.name
