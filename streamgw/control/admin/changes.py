"""One change of the configuration, from what a client wants to what stands in a file. Blocking.

The order of things: look at the directory; decide what the object should be; plan the very text of its file; compile the
directory with that text in it; write it if the directory is still the same, else begin again. Nothing is written that
would not load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from http import HTTPStatus

import attrs

from streamgw.config.compile import Compilation, FileTree
from streamgw.config.documents import digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.layout import is_same
from streamgw.config.plan import AlreadyExists, Plan, Stale, check_key, place_in
from streamgw.config.store import NotWritable, Store
from streamgw.config.survey import Located, Survey
from streamgw.config.tree import KeepsChanging
from streamgw.control.admin.replies import RequestError, bad, key_not_found
from streamgw.core.errors import ConfigError, Problem, StoreError
from streamgw.core.model import Awaited, Key, Listener

ATTEMPTS = 5
"""An editor that saves again and again while we check what it has saved."""
MAX_SHOWN = 5
"""Problems of other objects that an answer names."""

Check = Callable[[FileTree, Sequence[Listener]], Compilation]
"""`Loader.check`: what a reload would say of this tree."""
Decide = Callable[[Survey], Mapping[str, object]]
"""What an object should be, its id included, in the light of all the others. Raises RequestError."""

_ITEM = re.compile(r"(\w+)\[([0-9]+)\]")
_TIMES = ("create_time", "update_time")


@attrs.frozen
class Made:
    """A change that was made."""

    key: Key
    data: Mapping[str, object] = attrs.field(factory=dict)
    """The object as it stands in its file now."""
    is_new: bool = False
    concerns: tuple[Key, ...] = ()
    """Every object that is another one now, or gone."""
    awaited: Awaited = ()
    """What every worker has to run for this to be live."""

    @property
    def digest(self) -> str:
        """Of the object as written."""
        return digest_of(self.data)


class Changes:
    """Makes changes in one directory. Not for two threads at once.

    Args:
      listeners: what the process listens on: warnings depend on it.
    """

    def __init__(self, store: Store, check: Check, listeners: Callable[[], Sequence[Listener]]) -> None:
        self._store = store
        self._check = check
        self._listeners = listeners

    def survey(self) -> Survey:
        """Every object as it is written now.

        Raises:
          RequestError: the directory cannot be read, or a file of it.
        """
        try:
            return self._store.survey()
        except StoreError as error:
            raise refused(error) from error

    def survey_to_show(self) -> Survey:
        """The same for whoever only looks: a broken file is no trouble, and shows what it held before.

        An editor in the middle of something must not look like a gateway without routes.

        Raises:
          RequestError: the directory cannot be read.
        """
        try:
            return self._store.survey_to_show()
        except StoreError as error:
            raise refused(error) from error

    def put(self, key: Key, decide: Decide, *, if_absent: bool = False, told: Collection[str] = ()) -> Made:
        """Write an object as `decide` says. One that says the same already stays as it is, its times too, unless they are
        among the fields that were `told` by the client.

        Raises:
          RequestError: nothing was written.
          AlreadyExists: with `if_absent`.
        """

        def plan(survey: Survey) -> tuple[Plan, Made]:
            old = survey.objects.get(key)
            data = decide(survey)
            _check_id(key)
            if old is not None and _says_the_same(old.data, data, told):
                data = old.data
            try:
                planned = self._store.plan_put(survey, key, data, if_absent=if_absent)
            except NotEditable as error:
                if old is not None:
                    raise
                raise bad(f"invalid configuration: {error}") from error
            return planned, Made(key, {**data, "id": key[1]}, is_new=old is None, concerns=(key,))

        return self._make(plan, key, if_absent=if_absent)

    def remove(self, key: Key, allow: Callable[[Survey, Located], None]) -> Made:
        """Delete an object, if `allow` does not raise.

        Raises:
          RequestError: nothing was written; 404: there is none.
        """

        def plan(survey: Survey) -> tuple[Plan, Made]:
            located = survey.objects.get(key)
            if located is None:
                raise key_not_found()
            allow(survey, located)
            return self._store.plan_delete(survey, key), Made(key, concerns=(key,))

        return self._make(plan, key)

    def replace_file(self, name: str, render: Callable[[Survey], tuple[bytes, Made]]) -> Made:
        """Put a whole file in place.

        Raises:
          RequestError: nothing was written.
        """

        def plan(survey: Survey) -> tuple[Plan, Made]:
            content, made = render(survey)
            return self._store.plan_file(survey, name, content), made

        return self._make(plan, None)

    def _make(
        self, decide: Callable[[Survey], tuple[Plan, Made]], key: Key | None, *, if_absent: bool = False
    ) -> Made:
        made: Made | None = None

        def plan(survey: Survey) -> Plan:
            nonlocal made
            planned, made = decide(survey)
            return planned

        def check(planned: Plan) -> None:
            nonlocal made
            assert made is not None, "planned before"
            sources = self._compile(planned, key).snapshot.sources
            made = attrs.evolve(made, awaited=tuple((each, sources.get(each)) for each in made.concerns))

        for _ in range(ATTEMPTS):
            try:
                self._store.change(plan, check)
            except Stale:
                continue
            except AlreadyExists:
                if if_absent:
                    raise
                continue  # somebody has just put a file where ours would have been: the next survey knows it
            except StoreError as error:
                raise refused(error) from error
            assert made is not None, "planned before"
            return made
        raise RequestError(
            HTTPStatus.CONFLICT, f"{self._store.directory}: keeps changing; nothing was written"
        )

    def _compile(self, plan: Plan, key: Key | None) -> Compilation:
        try:
            return self._check(plan.after, self._listeners())
        except ConfigError as error:
            raise _rejected(error.problems, plan, key) from error


def refused(error: StoreError) -> RequestError:
    """What the directory said, as an answer."""
    if isinstance(error, NotEditable | NotWritable | Stale | AlreadyExists):
        return RequestError(HTTPStatus.CONFLICT, f"nothing was written: {error}")
    if isinstance(error, KeepsChanging):
        return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
    return RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


def _rejected(problems: Sequence[Problem], plan: Plan, key: Key | None) -> RequestError:
    """Whose problem it is decides: 400 for what was sent, 409 for everything else."""
    own = [problem for problem in problems if problem.file == str(plan.change.path)]
    for problem in own:
        if not problem.pointer:  # of the whole file: a variable that is not set
            return bad(f"invalid configuration: {problem.message}")
        if key is None and (place := _ITEM.match(problem.pointer)):
            return bad(f"invalid {place[1]} at index {place[2]}, err: {problem.error_msg}")
    if key is not None and own and plan.change.content:
        path = f"{key[0]}[{place_in(plan.change.content, key)}]"
        for problem in own:
            if _is_inside(problem.pointer, path):
                return bad(problem.error_msg)
    shown = "; ".join(map(str, problems[:MAX_SHOWN]))
    more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    message = f"nothing was written: the configuration would not load: {shown}{more}"
    return RequestError(HTTPStatus.CONFLICT, message)


def _is_inside(pointer: str, path: str) -> bool:
    return pointer == path or pointer.startswith((f"{path}.", f"{path}["))


def _check_id(key: Key) -> None:
    """APISIX allows an id to begin with a dot, but a file that does is hidden."""
    try:
        check_key(key)
    except StoreError as error:
        raise bad(f'invalid configuration: property "id" validation failed: {error}') from error


def _says_the_same(old: Mapping[str, object], new: Mapping[str, object], told: Collection[str]) -> bool:
    """Whether two versions of an object differ in nothing but when they were written, unless they were `told`."""
    left_out = {"id", *(name for name in _TIMES if name not in told)}
    return is_same(
        *({name: value for name, value in data.items() if name not in left_out} for data in (old, new))
    )
