from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import attrs
import pytest

from streamgw.config.strict import (
    Fault,
    Stated,
    Wrong,
    described,
    each,
    nearest,
    shown,
    structure,
    structure_rest,
    unknown_field,
)


def even(value: object) -> int:
    if not isinstance(value, int) or value % 2:
        raise Wrong(f"expected an even number, got {shown(value)}")
    return value


@attrs.frozen
class Wheel:
    size: Annotated[int, even]
    name: str = "wheel"


@attrs.frozen
class Car:
    also_known: ClassVar[tuple[str, ...]] = ("trailer",)
    wheels: tuple[Wheel, ...] = ()
    spare: Wheel | None = None
    colour: Literal["red", "blue", 1] = "red"
    electric: bool | None = None

    def check(self) -> Iterator[Fault]:
        if self.electric and self.colour == "red":
            yield Fault(("colour",), "no red electric cars")


def broken(value: object) -> int:
    raise ZeroDivisionError


@attrs.frozen
class Broken:
    field: Annotated[int, broken]


def faults(data: object, kind: type[object] = Car) -> list[tuple[object, ...]]:
    with pytest.raises(Wrong) as caught:
        structure(data, kind)
    return [(fault.path, fault.message, fault.at_key) for fault in caught.value.faults]


def test_plain_data_becomes_values() -> None:
    data: Mapping[str, object] = {"wheels": [{"size": 2}, {"size": 4, "name": "big"}], "spare": {"size": 6}}

    assert structure(data, Car) == Car((Wheel(2), Wheel(4, "big")), Wheel(6))
    assert structure({}, Car) == Car()
    assert structure({"electric": True, "colour": 1}, Car) == Car(electric=True, colour=1)


def test_every_fault_is_reported_at_once_with_its_path() -> None:
    data = {"wheels": [{"size": 3}, {"name": 5}, 7], "spare": {"size": "2"}, "electric": 1, "weels": []}

    assert sorted(faults(data), key=repr) == sorted(
        [
            (("wheels", 0, "size"), "expected an even number, got 3", False),
            (("wheels", 1, "size"), "is required", False),
            (("wheels", 1, "name"), "expected text, got 5", False),
            (("wheels", 2), "expected a mapping, got 7", False),
            (("spare", "size"), "expected an even number, got '2'", False),
            (("electric",), "expected true or false, got 1", False),
            (("weels",), "unknown field 'weels', did you mean 'wheels'?", True),
        ],
        key=repr,
    )


def test_names_that_are_read_elsewhere_are_known_too() -> None:
    assert faults({"trailr": 1}) == [(("trailr",), "unknown field 'trailr', did you mean 'trailer'?", True)]


def test_a_class_checks_itself_once_its_fields_are_right() -> None:
    assert faults({"electric": True}) == [(("colour",), "no red electric cars", False)]
    assert len(faults({"electric": True, "spare": 1})) == 1


def test_the_rest_of_what_is_refused_can_be_read() -> None:
    assert structure_rest({"wheels": [{"size": 3}], "electric": True, "weels": []}, Car) == Car(electric=True)
    assert structure_rest({"spare": {"size": 2}}, Car) == Car(spare=Wheel(2))


def test_there_is_no_rest_without_what_is_needed() -> None:
    with pytest.raises(Wrong) as caught:
        structure_rest({"size": 3, "name": "big"}, Wheel)

    assert [(fault.path, fault.message) for fault in caught.value.faults] == [(("size",), "is required")]


def test_nothing_is_not_a_value() -> None:
    assert faults({"spare": None, "wheels": None, "colour": None}) == [
        (("wheels",), "expected a list, got null", False),
        (("spare",), "expected a mapping, got null", False),
        (("colour",), "expected 'red' or 'blue' or 1, got null", False),
    ]


def test_text_is_no_list_of_letters_and_no_mapping() -> None:
    """The text itself is not shown: a private key may stand one level too high."""
    assert faults({"wheels": "secret", "spare": "secret"}) == [
        (("wheels",), "expected a list, got text", False),
        (("spare",), "expected a mapping, got text", False),
    ]


@pytest.mark.parametrize(
    ("value", "hint"), [("rde", ""), ("rred", ", did you mean 'red'?"), (True, ""), (1.0, "")]
)
def test_a_choice_is_one_of_its_values_in_its_type(value: object, hint: str) -> None:
    assert faults({"colour": value}) == [
        (("colour",), f"expected 'red' or 'blue' or 1, got {shown(value)}{hint}", False)
    ]


def test_a_list_outside_of_a_class_has_positions_too() -> None:
    assert each(even, [2, 4]) == (2, 4)
    with pytest.raises(Wrong) as caught:
        each(lambda value: structure(value, Wheel), [{"size": 2}, {"size": 1}, {}])
    assert [fault.path for fault in caught.value.faults] == [(1, "size"), (2, "size")]


def test_a_bug_in_a_rule_is_not_a_fault_of_the_file() -> None:
    with pytest.raises(ZeroDivisionError):
        structure({"field": 1}, Broken)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (False, "false"), (1, "1"), (1.5, "1.5"), ("80", "'80'"), ({}, "a mapping"),
        ([], "a list"), ("x" * 100, "'" + "x" * 59 + "…"), ("-----BEGIN PRIVATE KEY-----\nhush", "a PEM text"),
    ],
)  # fmt: skip
def test_values_are_shown_in_the_words_of_the_file(value: object, text: str) -> None:
    assert shown(value) == text
    assert described(value) == ("text" if isinstance(value, str) else text)


def test_only_a_near_name_is_offered() -> None:
    assert nearest("server_prot", ("server_port", "server_addr")) == ", did you mean 'server_port'?"
    assert nearest("zzz", ("server_port",)) == ""
    assert unknown_field("x", ("y",)) == Fault(("x",), "unknown field 'x'", at_key=True)


def final(value: object) -> str:
    raise Wrong(
        Fault((), "ours", apisix="theirs", is_final=True),
        Fault(("inner",), "ours", apisix="theirs inside"),
        "ours",
    )


@attrs.frozen
class Garage:
    """With what a client of APISIX's API would be told."""

    cars: tuple[Car, ...] = ()
    gates: Annotated[int, Stated(even, {"type": "integer", "minimum": 2})] = 2
    doors: Annotated[int, Stated(even, {}, {"type": "integer"})] = 2
    guard: Annotated[str, Stated(final, {"type": "string"})] = ""
    kind: Literal["own", "hired"] = "own"
    level: Literal[1, 2] = 1


def words(data: object) -> list[str]:
    with pytest.raises(Wrong) as caught:
        structure(data, Garage)
    return [fault.error_msg for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "wrong type: expected object, got table"),
        ({"door": 2}, "additional properties forbidden, found door"),
        ({"cars": {}}, 'property "cars" validation failed: wrong type: expected array, got table'),
        ({"cars": [{}, {"wheels": [{}]}]}, 'property "cars" validation failed: failed to validate item 2: property "wheels" validation failed: failed to validate item 1: property "size" is required'),
        ({"cars": [{"electric": 1}]}, 'property "cars" validation failed: failed to validate item 1: property "electric" validation failed: wrong type: expected boolean, got number'),
        ({"cars": [{"electric": True}]}, 'property "cars" validation failed: failed to validate item 1: property "colour" validation failed: no red electric cars'),
        ({"cars": [{"colour": "green"}]}, 'property "cars" validation failed: failed to validate item 1: property "colour" validation failed: matches none of the enum values'),
        ({"gates": 1}, 'property "gates" validation failed: expected 1 to be at least 2'),
        ({"gates": 3}, 'property "gates" validation failed: expected an even number, got 3'),
        ({"doors": 1}, 'property "doors" validation failed: expected an even number, got 1'),
        ({"doors": "x"}, 'property "doors" validation failed: wrong type: expected integer, got string'),
        ({"kind": 1}, 'property "kind" validation failed: wrong type: expected string, got number'),
        ({"level": 3}, 'property "level" validation failed: matches none of the enum values'),
    ],
)  # fmt: skip
def test_every_fault_has_the_words_of_apisix(data: object, said: str) -> None:
    assert words(data) == [f"invalid configuration: {said}"]


def test_the_rule_decides_whatever_the_schema_says() -> None:
    assert structure({"gates": 0}, Garage).gates == 0


def test_what_apisix_says_after_its_schema_is_not_wrapped() -> None:
    assert words({"guard": "dog"}) == [
        "theirs",
        'invalid configuration: property "guard" validation failed: theirs inside',
        'invalid configuration: property "guard" validation failed: ours',
    ]
    assert (
        words({"guard": 1})
        == [
            'invalid configuration: property "guard" validation failed: wrong type: expected string, got number'
        ]
        * 3
    )


def test_where_an_object_stands_in_its_file_is_no_business_of_the_api() -> None:
    inside = Fault(("port",), "no port").inside(("stream_routes", 0)).under(("file",))

    assert inside.path == ("file", "stream_routes", 0, "port")
    assert inside.error_msg == 'invalid configuration: property "port" validation failed: no port'


def test_a_rule_can_be_asked_by_itself() -> None:
    assert Stated(even, {})(2) == 2
