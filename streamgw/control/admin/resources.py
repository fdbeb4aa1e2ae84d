"""The resources of the Admin API: objects are read from files and written to files.

Who may is asked before (`access.py`); how a change is made is in `changes.py`; here is what a request means.

Source:
  APISIX `apisix/admin/init.lua` (paths), `resource.lua` (verbs, statuses, texts), `utils.lua` (times).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Literal

import attrs
import trio
from starlette.responses import Response

from streamgw.config.apisix import refusal, refusal_of_http
from streamgw.config.plan import AlreadyExists
from streamgw.config.plugins import PluginSet
from streamgw.config.schema import COLLECTIONS
from streamgw.config.survey import Located, Survey
from streamgw.config.wording import wrong_type
from streamgw.control.admin.changes import Changes, Made
from streamgw.control.admin.listing import list_objects, show, show_value
from streamgw.control.admin.patching import merge, replace_at
from streamgw.control.admin.references import use_of
from streamgw.control.admin.replies import RequestError, as_v2, bad, json_reply, key_not_found, not_found
from streamgw.control.admin.writer import Applied, Writer
from streamgw.core.model import Key, Listener

_TITLES = {
    "stream_routes": "stream route",
    "upstreams": "upstream",
    "services": "service",
    "ssls": "ssl",
    "plugin_metadata": "plugin_metadata",
}
"""What APISIX's messages call one of them."""
MAX_TTL_S = 10 * 365 * 86_400
_NUMBER = re.compile(r"[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,3})?")
"""As JSON has them, if not negative."""
_IDS = 1000
"""New ids that are tried."""


@attrs.frozen
class Call:
    """One request for a collection."""

    collection: str
    id: str
    """Empty: there is none in the path."""
    sub_path: str
    """What follows the id: `upstream/nodes`."""
    body: object
    """JSON; None: there is none."""
    query: Mapping[str, str]
    if_match: str | None
    if_none_match: str | None

    @property
    def title(self) -> str:
        """As APISIX's messages call the object."""
        return _TITLES[self.collection]

    def check_version(self, located: Located | None) -> None:
        """Whether the object is the one that the client knows.

        Raises:
          RequestError: 412, it is not.

        Source:
          RFC 9110 § 13.1.1, § 13.1.2.
        """
        if self.if_match is not None:
            wanted = {tag.strip().removeprefix("W/").strip('"') for tag in self.if_match.split(",")}
            if located is None or not wanted & {"*", located.digest}:
                raise _precondition("it is not the version that If-Match names")
        if self.if_none_match is not None and self.if_none_match.strip() == "*" and located is not None:
            raise _precondition("it exists, and If-None-Match says that it must not")


class Resources:
    """Answers requests for collections.

    Args:
      wall_clock: Unix time, for the times in objects and for new ids.
      plugins: what there is to run on routes: metadata is theirs.
      version: shape of the answers.
      on_ttl: told when an object was written that expires.
    """

    def __init__(  # noqa: PLR0913  each by its name
        self,
        changes: Changes,
        writer: Writer,
        listeners: Callable[[], Sequence[Listener]],
        wall_clock: Callable[[], float],
        *,
        plugins: Callable[[], PluginSet],
        version: Literal["v2", "v3"],
        on_ttl: Callable[[], None],
    ) -> None:
        self._changes = changes
        self._writer = writer
        self._listeners = listeners
        self._wall_clock = wall_clock
        self._plugins = plugins
        self._version = version
        self._on_ttl = on_ttl

    async def answer(self, method: str, call: Call) -> Response:
        """Do what a request asks for.

        Raises:
          RequestError: it cannot be done.
        """
        if call.collection not in COLLECTIONS:
            return self._answer_for_http(method, call)
        if call.sub_path and method != "PATCH":
            raise not_found()  # APISIX overlooks it: DELETE …/1/upstream would delete the whole route there
        is_adding = method not in {"GET", "DELETE"}
        if is_adding and call.collection == "stream_routes" and not self._listeners():
            raise bad("stream mode is disabled, can not add stream routes")
        if call.collection == "plugin_metadata":
            self._check_metadata(method, call)
        answers: Mapping[str, Callable[[Call], Awaitable[Response]]] = {
            "GET": self._get,
            "PUT": self._put,
            "POST": self._post,
            "PATCH": self._patch,
            "DELETE": self._delete,
        }
        return await answers[method](call)

    def _check_metadata(self, method: str, call: Call) -> None:
        if method in {"POST", "PATCH"}:
            message = f"not supported `{method}` method for plugin_metadata"
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, message)
        plugin = self._plugins().installed.get(call.id)
        if method == "PUT" and (plugin is None or plugin.metadata is None):
            raise bad("invalid plugin name")

    def _answer_for_http(self, method: str, call: Call) -> Response:
        """Collections that are always empty: clients that sync everything ask for all of them."""
        if method == "GET":
            if call.id:
                raise key_not_found()
            return json_reply(self._shaped("get", {"list": [], "total": 0}))
        raise bad(refusal_of_http(call.collection) or "")

    async def _get(self, call: Call) -> Response:
        survey = await trio.to_thread.run_sync(self._changes.survey_to_show)
        if not call.id:
            listed = await trio.to_thread.run_sync(list_objects, survey.of(call.collection), call.query)
            return json_reply(self._shaped("get", listed))
        located = survey.objects.get((call.collection, call.id))
        if located is None:
            raise key_not_found()
        return json_reply(self._shaped("get", show(located)), headers={"ETag": f'"{located.digest}"'})

    async def _put(self, call: Call) -> Response:
        body = _sent(call)
        id_ = call.id or _id_of(body)
        if not id_:
            raise bad(f"missing {call.title} id")
        if "id" in body and _id_of(body) != id_:
            raise bad(f"wrong {call.title} id")
        key = (call.collection, id_)
        # The id as it was sent, if it was: 0 is refused, as by APISIX. `_replace` stores text.
        sent = {**body, "id": body.get("id", id_)}
        return await self._write(
            "set", partial(self._changes.put, key, partial(self._replace, call, key, sent))
        )

    async def _post(self, call: Call) -> Response:
        body = _sent(call)
        if call.id or "id" in body:
            raise bad(f"wrong {call.title} id, do not need it")
        return await self._write("create", partial(self._add, call, body))

    async def _patch(self, call: Call) -> Response:
        if not call.id:
            raise bad(f"missing {call.title} id")
        if call.body is None:
            raise bad("missing new configuration")
        if not call.sub_path and not isinstance(call.body, Mapping):
            raise bad("invalid configuration")
        key = (call.collection, call.id)
        change = partial(self._changes.put, key, partial(self._merge, call, key), told=_told(call))
        return await self._write("compareAndSwap", change)

    async def _delete(self, call: Call) -> Response:
        if not call.id:
            raise bad(f"missing {call.title} id")
        key = (call.collection, call.id)
        applied = await self._writer.make(partial(self._changes.remove, key, partial(_allow_removal, call)))
        content = {"deleted": call.id, "key": f"/apisix/{call.collection}/{call.id}"}
        return _reply(applied, HTTPStatus.OK, self._shaped("delete", content))

    # In the worker thread: an object may have thousands of nodes

    def _replace(
        self, call: Call, key: Key, sent: Mapping[str, object], survey: Survey
    ) -> Mapping[str, object]:
        old = survey.objects.get(key)
        call.check_version(old)
        self._refuse(call.collection, sent)
        before = {} if old is None else old.data
        return self._stamped({**sent, "id": key[1]}, call, before.get("create_time"))

    def _merge(self, call: Call, key: Key, survey: Survey) -> Mapping[str, object]:
        old = survey.objects.get(key)
        if old is None:
            raise key_not_found()
        call.check_version(old)
        before = {**old.data, "id": key[1]}
        if call.sub_path:
            merged = replace_at(before, call.sub_path, call.body)
        else:
            assert isinstance(call.body, Mapping), "looked at before"
            merged = merge(before, call.body)
        if _id_of(merged) != key[1]:
            raise bad(f"wrong {call.title} id")
        data = self._stamped(merged, call, merged.get("create_time"))
        if "update_time" in _told(call) and merged.get("update_time") is not None:
            data["update_time"] = merged["update_time"]
        self._refuse(call.collection, data, allow_times=True)
        return data

    def _add(self, call: Call, sent: Mapping[str, object]) -> Made:
        self._refuse(call.collection, sent)
        data = self._stamped(sent, call, None)
        for id_ in self._new_ids():
            try:
                key = (call.collection, id_)
                return self._changes.put(key, partial(_with_id, data, id_), if_absent=True)
            except AlreadyExists:
                continue
        raise RequestError(HTTPStatus.CONFLICT, "no id is free; nothing was written")

    def _refuse(self, collection: str, data: Mapping[str, object], *, allow_times: bool = False) -> None:
        """What is wrong with the object alone; with everything together when that is compiled."""
        said = refusal(collection, data, allow_times=allow_times, plugins=self._plugins())
        if said is not None:
            raise bad(said)

    def _new_ids(self) -> Iterator[str]:
        """20 digits, as etcd's revisions in APISIX: here the time in milliseconds."""
        start = int(self._wall_clock() * 1000)
        return (f"{number:020}" for number in itertools.islice(itertools.count(start), _IDS))

    def _stamped(self, data: Mapping[str, object], call: Call, created: object) -> dict[str, object]:
        """An object as it will be stored: what was sent, and when. Nothing else is added."""
        now = self._wall_clock()
        times: dict[str, object] = {
            "create_time": int(now) if created is None else created,
            "update_time": int(now),
        }
        if call.collection == "plugin_metadata":
            times = {}
        if "ttl" in call.query:
            times["expire_time"] = math.ceil(now + check_ttl(call.query["ttl"]))
        return {**data, **times}

    def _shaped(self, action: str, content: Mapping[str, object]) -> Mapping[str, object]:
        return content if self._version == "v3" else as_v2(action, content)

    async def _write(self, action: str, change: Callable[[], Made]) -> Response:
        applied = await self._writer.make(change)
        made = applied.made
        if "expire_time" in made.data:
            self._on_ttl()
        status = HTTPStatus.CREATED if made.is_new else HTTPStatus.OK
        content = self._shaped(action, show_value(made.key, made.data))
        return _reply(applied, status, content, {"ETag": f'"{made.digest}"'})


def _sent(call: Call) -> Mapping[str, object]:
    if call.body is None:
        raise bad("missing configurations")
    if not isinstance(call.body, Mapping):
        raise bad(f"invalid configuration: {wrong_type('object', call.body)}")
    return call.body


def _with_id(data: Mapping[str, object], id_: str, survey: Survey) -> Mapping[str, object]:
    del survey
    return {**data, "id": id_}


def _id_of(data: Mapping[str, object]) -> str:
    """The id in a body, as text."""
    id_ = data.get("id")
    return str(id_) if isinstance(id_, str) or type(id_) is int else ""


def _told(call: Call) -> Collection[str]:
    """The fields that a PATCH says itself. One of a sub path says what is in a field."""
    return call.body.keys() if isinstance(call.body, Mapping) and not call.sub_path else ()


def _allow_removal(call: Call, survey: Survey, located: Located) -> None:
    call.check_version(located)
    said = use_of(located.key, survey.objects)
    if said and call.query.get("force") == "true":
        # APISIX deletes it, and whatever refers to it fails at run time. Here the next reload would be refused, and with
        # it every change that anybody makes.
        raise bad(f"{said}; force=true cannot help: without it the configuration would not load")
    if said:
        raise bad(said)


def check_ttl(text: str) -> float:
    """The seconds that `?ttl=` says.

    Raises:
      RequestError: 400, it says something else.
    """
    if not _NUMBER.fullmatch(text):
        raise bad("invalid argument ttl: should be a number")
    ttl_s = float(text)
    if not 0 < ttl_s <= MAX_TTL_S:
        raise bad(f"invalid argument ttl: should be more than 0 and at most {MAX_TTL_S}")
    return ttl_s


def _precondition(message: str) -> RequestError:
    return RequestError(HTTPStatus.PRECONDITION_FAILED, f"nothing was written: {message}")


def _reply(
    applied: Applied, status: int, content: Mapping[str, object], headers: Mapping[str, str] | None = None
) -> Response:
    """202 when it is written and not live everywhere: the client learns who lags."""
    if applied.late:
        return json_reply(
            {**content, "lagging_workers": list(applied.late)}, HTTPStatus.ACCEPTED, headers=headers
        )
    return json_reply(content, status, headers=headers)
