"""Talks: steps as they are written, and those that are ready made, against what real servers said."""

from __future__ import annotations

import pytest

from streamgw.config.probes import ReadyMade, TalkSpec, ready_made
from streamgw.config.strict import Wrong, structure
from streamgw.core.probe import Step


def step(**fields: object) -> Step:
    return structure(fields, TalkSpec).build()


def refusal(**fields: object) -> str:
    with pytest.raises(Wrong) as caught:
        structure(fields, TalkSpec)
    (fault,) = caught.value.faults
    return fault.message


# ── Steps ────────────────────────────────────────────────────────────────────────────────────────


def test_text_is_sent_and_expected_as_it_stands() -> None:
    made = step(send="PING\r\n", expect="+P.NG")

    assert made.send == b"PING\r\n"
    assert made.is_answered(b"said: +P.NG")
    assert not made.is_answered(b"+PONG")


def test_bytes_are_written_in_hexadecimal() -> None:
    made = step(send_hex="0d 0A", expect_hex="00ff")

    assert made.send == b"\r\n"
    assert made.is_answered(b"a\x00\xffb")


def test_a_pattern_is_found_anywhere_and_a_dot_is_any_byte() -> None:
    made = step(expect_regex="a.b$")

    assert made.send == b""
    assert made.is_answered(b"xa\nb")
    assert not made.is_answered(b"a\nbc")


def test_a_step_that_only_listens_says_nothing() -> None:
    assert not structure({"expect": "a"}, TalkSpec).says_something
    assert structure({"send": "a"}, TalkSpec).says_something
    assert structure({"send_hex": "00"}, TalkSpec).says_something


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"send": ""}, "expected 1 to 16384 characters, got ''"),
        ({"send": 1}, "expected 1 to 16384 characters, got 1"),
        ({"send_hex": "0"}, "expected bytes in hexadecimal like '0d 0a', got '0'"),
        ({"send_hex": ""}, "expected bytes in hexadecimal like '0d 0a', got ''"),
        ({"send_hex": 7}, "expected bytes in hexadecimal like '0d 0a', got 7"),
        ({"expect_regex": "("}, "not a regular expression: missing ), unterminated subpattern at position 0"),
        ({"expect_regex": ""}, "expected a regular expression, got ''"),
        ({"send": "a", "send_hex": "00"}, "'send' and 'send_hex' exclude each other"),
        ({"expect_hex": "00", "expect": "a"}, "'expect' and 'expect_hex' exclude each other"),
        ({}, "expected something to send or to expect"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], said: str) -> None:
    assert refusal(**fields) == said


# ── Ready made ───────────────────────────────────────────────────────────────────────────────────


def talk(name: ReadyMade, *, over_udp: bool = False, user: str | None = None) -> tuple[Step, ...]:
    return ready_made(name, over_udp=over_udp, user=user)


@pytest.mark.parametrize(
    ("said", "is_well"),
    [
        (b"+PONG\r\n", True),
        (b"-NOAUTH Authentication required.\r\n", True),
        (b"-NOPERM this user has no permissions to run the 'ping' command\r\n", True),
        (b"-LOADING Redis is loading the dataset in memory\r\n", False),
        (b"-MASTERDOWN Link with MASTER is down\r\n", False),
    ],
)
def test_a_redis_is_well_when_it_serves(said: bytes, is_well: bool) -> None:
    assert talk("redis")[0].is_answered(said) is is_well


def test_a_mysql_is_greeted_as_the_user() -> None:
    greeting, login, farewell = talk("mysql", user="monitor")

    assert greeting.is_answered(b"\x4a\x00\x00\x00\x0a5.5.5-10.11.6-MariaDB\x00")
    assert not greeting.is_answered(b"\x17\x00\x00\x01\xff\x10\x04Too many connections")
    length = int.from_bytes(login.send[:3], "little")
    assert (len(login.send), login.send[3]) == (length + 4, 1)
    assert login.send.endswith(b"monitor\x00\x00")
    assert farewell == Step(b"\x01\x00\x00\x00\x01")


@pytest.mark.parametrize(
    ("said", "is_well"),
    [
        (b"\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00", True),
        (b"\x48\x00\x00\x02\xff\x15\x04#28000Access denied for user 'streamgw'", True),
        (b"\x17\x00\x00\x02\xff\x10\x04#08004Too many connections", False),
        (b"\x6a\x00\x00\x02\xff\x69\x04Host is blocked", False),
    ],
)
def test_a_mysql_is_well_when_it_decides_about_the_login(said: bytes, is_well: bool) -> None:
    assert talk("mysql")[1].is_answered(said) is is_well


@pytest.mark.parametrize(
    ("said", "is_well"),
    [
        (b"R\x00\x00\x00\x08\x00\x00\x00\x00", True),
        (b'E\x00\x00\x00\x60SFATAL\x00VFATAL\x00C28000\x00Mrole "streamgw" does not exist\x00\x00', True),
        (b"E\x00\x00\x00\x60SFATAL\x00C28000\x00Mof before 9.6\x00\x00", True),
        (
            b"E\x00\x00\x00\x60SFATAL\x00VFATAL\x00C57P03\x00Mthe database system is starting up\x00\x00",
            False,
        ),
        (b"E\x00\x00\x00\x60SFATAL\x00VFA", False),
        (b"HTTP/1.1 400 Bad Request", False),
    ],
)
def test_a_postgresql_is_well_unless_it_starts_or_stops(said: bytes, is_well: bool) -> None:
    startup, farewell = talk("postgresql")

    assert int.from_bytes(startup.send[:4], "big") == len(startup.send)
    assert b"user\x00streamgw\x00" in startup.send
    assert startup.is_answered(said) is is_well
    assert farewell.send == b"X\x00\x00\x00\x04"


def test_a_mail_server_is_well_when_it_greets_and_answers() -> None:
    greeting, hello, farewell = talk("smtp")

    assert greeting.is_answered(b"220 mail.example ESMTP\r\n")
    assert not greeting.is_answered(b"421 busy\r\n")
    assert hello.is_answered(b"250-mail.example\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n")
    assert not hello.is_answered(b"250-mail.example\r\n")
    assert farewell.is_answered(b"221 bye\r\n")


@pytest.mark.parametrize(
    ("said", "is_well"),
    [
        ("300c02010161070a010004000400", True),
        ("3084000000100201016184000000070a010004000400", True),
        ("300c02010161070a013004000400", True),
        ("300c02010161070a013304000400", False),
        ("300c02010161070a013404000400", False),
    ],
)
def test_a_directory_is_well_when_it_decides_about_the_bind(said: str, is_well: bool) -> None:
    (bind,) = talk("ldap")

    assert bind.is_answered(bytes.fromhex(said)) is is_well


@pytest.mark.parametrize(
    ("flags", "is_well"),
    [("8180", True), ("8185", True), ("8183", True), ("8182", False), ("0100", False)],
)
def test_a_name_server_is_well_when_it_answers_or_refuses(flags: str, is_well: bool) -> None:
    answer = b"sg" + bytes.fromhex(flags) + b"\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"

    assert talk("dns", over_udp=True)[0].is_answered(answer) is is_well
    assert talk("dns")[0].is_answered(len(answer).to_bytes(2, "big") + answer) is is_well
