"""Plain data to typed values: nothing is guessed, nothing is converted, every fault is reported at once.

cattrs does the walking; this module makes it strict. cattrs alone turns `"80"` into 80, reads a string as a list of
letters, and loses the attribute when a validator fails. So every leaf has a *rule*, a function that returns the value
or raises `Wrong`, hung on the type with `Annotated`:

    server_port: Annotated[int, integer(1, 65535)]

A class whose fields depend on each other has a method `check() -> Iterator[Fault]`, asked once every single field is
right, and may list names that it accepts elsewhere in `also_known`; one that is `is_open` has fields that are read
elsewhere. A field that may be absent has the default None,
but `null` in the file is a fault: `server_port:` with nothing behind it is more often a slip than a wish.

A rule that is `Stated` says the same as a JSON Schema. From that, `config/json_schema.py` makes the schema that editors
use, and every fault gets its words for clients of APISIX's Admin API (`config/apisix.py`).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import BaseValidationError, ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from streamgw.config.wording import MAX_SHOWN, Schema, complaint, nested, wrong_type
from streamgw.config.yaml_reader import Path

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Rule: TypeAlias = Callable[[object], T]
_Kind: TypeAlias = Any
"""What stands behind the colon of a field: a class, `tuple[...]`, `Annotated[...]`. Python has no type for that yet."""
_Hook: TypeAlias = Callable[[Any, Any], Any]


@attrs.frozen
class Fault:
    """One thing wrong, before it has a file and a line."""

    path: Path
    message: str
    at_key: bool = False
    """The name is wrong, not the value: points at the key."""
    apisix: str = attrs.field(default="", kw_only=True, eq=False, repr=False)
    """APISIX's words, as they read where the path begins; empty: it has none of its own for this."""
    is_final: bool = attrs.field(default=False, kw_only=True, eq=False, repr=False)
    """`apisix` is the whole `error_msg`. APISIX says such things only once its schema has nothing to complain of."""

    def under(self, path: Path) -> Fault:
        """The same fault seen from further out."""
        apisix = nested(path, self.apisix) if self.apisix and not self.is_final else self.apisix
        return attrs.evolve(self, path=path + self.path, apisix=apisix)

    def inside(self, path: Path) -> Fault:
        """The same fault of an object that stands at this place of a file. A client of the API does not see the file."""
        return attrs.evolve(self, path=path + self.path, apisix=self.error_msg, is_final=True)

    @property
    def words(self) -> str:
        """What is wrong, in APISIX's words or form, seen from where the path begins."""
        return self.apisix or nested(self.path, self.message)

    @property
    def error_msg(self) -> str:
        """With which APISIX would refuse the object that the path begins in."""
        return self.words if self.is_final else f"invalid configuration: {self.words}"


@attrs.frozen(eq=False)
class Stated(Generic[T_co]):
    """A rule that says what it accepts, too."""

    rule: Callable[[object], T_co]
    schema: Schema
    """JSON Schema, draft 2020-12. Accepts what the rule accepts, and nothing else as far as a schema can tell."""
    apisix: Schema | None = None
    """APISIX's own, where it accepts more or less: for its words only."""

    def __call__(self, value: object) -> T_co:
        """As the rule."""
        return self.rule(value)

    def worded(self, wrong: Wrong, value: object) -> Wrong:
        """The same refusal; where APISIX's schema refuses the value too, in its words."""
        said = complaint(self.schema if self.apisix is None else self.apisix, value)
        if not said:
            return wrong
        return Wrong(*(attrs.evolve(fault, apisix=said, is_final=False) for fault in wrong.faults))


class Wrong(Exception):
    """A rule is broken, in one place or in several."""

    def __init__(self, *faults: Fault | str) -> None:
        super().__init__(faults)
        self.faults = tuple(Fault((), fault) if isinstance(fault, str) else fault for fault in faults)


def structure(data: object, kind: type[T]) -> T:
    """Make a value of this attrs class out of plain data.

    Raises:
      Wrong: with every fault.
    """
    try:
        return _CONVERTER.structure(data, kind)
    except (Wrong, BaseValidationError) as error:
        raise Wrong(*_faults_of(error, ())) from None


def structure_rest(data: Mapping[str, object], kind: type[T]) -> T:
    """What is right of data that `structure` refuses, the rest as if it were not written, and `check` not asked.

    For what can be said of an object only later, and has to be said together with what is wrong with it already.

    Raises:
      Wrong: a field that is needed is among the rest.
    """
    any_kind: _Kind = kind
    fill: Callable[[Mapping[str, object], object], T] = _fill_rest(any_kind)
    try:
        return fill(data, kind)
    except ClassValidationError as error:
        wrong = {note.name for _, note in error.group_exceptions()[0]}
    try:
        return fill({name: value for name, value in data.items() if name not in wrong}, kind)
    except ClassValidationError as error:
        raise Wrong(*_faults_of(error, ())) from None


@functools.cache
def _fill_rest(kind: _Kind) -> Callable[[Mapping[str, object], object], Any]:
    """Once per kind: a file may have 2,000 objects with faults, and this takes 2 ms."""
    return make_dict_structure_fn(
        kind, _CONVERTER, _cattrs_forbid_extra_keys=False, _cattrs_detailed_validation=True
    )


def shown(value: object) -> str:
    """A value for a message: short, and in the words of the file."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and "-----BEGIN" in value:
        return "a PEM text"  # perhaps a key, at the wrong place
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def described(value: object) -> str:
    """What kind of value it is. For places where a secret may stand that was written one level too high."""
    return "text" if isinstance(value, str) else shown(value)


@functools.lru_cache(maxsize=1024)
def nearest(name: str, known: tuple[str, ...]) -> str:
    """`, did you mean 'server_port'?`, or nothing."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f", did you mean '{found[0]}'?" if found else ""


def unknown_field(name: str, known: tuple[str, ...]) -> Fault:
    """A key that nobody reads."""
    return Fault(
        (name,),
        f"unknown field '{name}'{nearest(name, known)}",
        at_key=True,
        apisix=f"additional properties forbidden, found {name}",
    )


def each(rule: Rule[T], values: object) -> tuple[T, ...]:
    """Apply a rule to every item of a list.

    Raises:
      Wrong: not a list, or with the faults of every item.
    """
    if not isinstance(values, list):
        raise Wrong(
            Fault((), f"expected a list, got {described(values)}", apisix=wrong_type("array", values))
        )
    done: list[T] = []
    faults: list[Fault] = []
    for position, value in enumerate(values):
        try:
            done.append(rule(value))
        except (Wrong, BaseValidationError) as error:
            faults += _faults_of(error, (position,))
    if faults:
        raise Wrong(*faults)
    return tuple(done)


def _faults_of(error: BaseException, path: Path) -> Iterator[Fault]:
    if isinstance(error, Wrong):
        for fault in error.faults:
            yield fault.under(path)
    elif isinstance(error, ClassValidationError):
        with_field, without = error.group_exceptions()
        for cause, note in with_field:
            yield from _faults_of(cause, (*path, note.name))
        for cause in without:
            yield from _faults_of(cause, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = (*(field.name for field in attrs.fields(error.cl)), *getattr(error.cl, "also_known", ()))
        for name in sorted(error.extra_fields):
            yield unknown_field(name, known).under(path)
    elif isinstance(error, KeyError):
        words = f'property "{path[-1]}" is required'
        yield Fault(path[-1:], "is required", apisix=words).under(path[:-1])
    else:
        raise error  # a bug in a rule: must not look like a fault of the file


def _structure_class(kind: _Kind, converter: cattrs.Converter) -> _Hook:
    is_closed = not getattr(kind, "is_open", False)

    @functools.cache
    def fill() -> Callable[[Mapping[str, object], object], object]:
        """Made when the first of the kind is read: most sections stand in few files, and each takes half a millisecond."""
        return make_dict_structure_fn(
            kind, converter, _cattrs_forbid_extra_keys=is_closed, _cattrs_detailed_validation=True
        )

    check = getattr(kind, "check", None)

    def structure_mapping(value: object, _: object) -> object:
        if not isinstance(value, Mapping):
            message = f"expected a mapping, got {described(value)}"
            raise Wrong(Fault((), message, apisix=wrong_type("object", value)))
        made = fill()(value, kind)
        if check is not None and (faults := tuple(check(made))):
            raise Wrong(*faults)
        return made

    return structure_mapping


def _structure_annotated(kind: _Kind) -> _Hook:
    rule = next(part for part in kind.__metadata__ if callable(part))
    if not isinstance(rule, Stated):
        return lambda value, _: rule(value)
    check, worded = rule.rule, rule.worded

    def structure_stated(value: object, _: object) -> object:
        try:
            return check(value)
        except Wrong as wrong:
            raise worded(wrong, value) from None

    return structure_stated


def _structure_optional(kind: _Kind, converter: cattrs.Converter) -> _Hook:
    """`X | None` says that the field may be absent; written, it must be an X."""
    (inner,) = (part for part in get_args(kind) if part is not type(None))
    return converter.get_structure_hook(inner)


def _structure_tuple(kind: _Kind, converter: cattrs.Converter) -> _Hook:
    item = get_args(kind)[0]
    hook = converter.get_structure_hook(item)
    return lambda values, _: each(lambda value: hook(value, item), values)


def _structure_literal(kind: _Kind) -> _Hook:
    choices = get_args(kind)
    schema = choice_schema(choices)

    def structure_choice(value: object, _: object) -> object:
        # 1 == True: the type must be that of a choice, too.
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        hint = nearest(value, tuple(map(str, choices))) if isinstance(value, str) else ""
        message = f"expected {' or '.join(map(shown, choices))}, got {shown(value)}{hint}"
        raise Wrong(Fault((), message, apisix=complaint(schema, value)))

    return structure_choice


def choice_schema(choices: tuple[object, ...]) -> Schema:
    """One of these values."""
    if all(type(choice) is str for choice in choices):
        return {"type": "string", "enum": list(choices)}
    if all(type(choice) is int for choice in choices):
        return {"type": "integer", "enum": list(choices)}
    return {"enum": list(choices)}


def _exactly(kind: type, name: str, apisix: str) -> _Hook:
    def structure_exactly(value: object, _: object) -> object:
        if type(value) is not kind:
            message = f"expected {name}, got {shown(value)}"
            raise Wrong(Fault((), message, apisix=wrong_type(apisix, value)))
        return value

    return structure_exactly


def _is(origin: _Kind) -> Callable[[_Kind], bool]:
    def has_origin(kind: _Kind) -> bool:
        found: object = get_origin(kind)
        return found is origin

    return has_origin


def _is_optional(kind: _Kind) -> bool:
    return type(None) in get_args(kind) and not _is(Literal)(kind)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook_factory(attrs.has, _structure_class)
    converter.register_structure_hook_factory(_is(tuple), _structure_tuple)
    converter.register_structure_hook_factory(_is(Literal), _structure_literal)
    converter.register_structure_hook_factory(_is_optional, _structure_optional)
    converter.register_structure_hook_factory(_is(Annotated), _structure_annotated)
    converter.register_structure_hook(str, _exactly(str, "text", "string"))
    converter.register_structure_hook(bool, _exactly(bool, "true or false", "boolean"))
    return converter


_CONVERTER = _make_converter()
