"""Which hooks a route gets: the plugins that it and its service name, their options read, in the order in which they run.

A route's plugin replaces the service's of the same name as a whole, options and `_meta`. Hooks are made once and kept as
long as everything they were made of stays the same, so that what a plugin counts survives every other edit.

Source:
  APISIX `apisix/plugin.lua` (`merge_service_stream_route`, `stream_plugin_checker`, order, `_meta`), `apisix/secret.lua`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import TypeVar

import attrs

from streamgw.config.documents import Document
from streamgw.config.kept import Kept
from streamgw.config.pem import References, digest_of
from streamgw.config.plugins import AnyPlugin, PluginSet, PluginUse, uses_in
from streamgw.config.schema import PluginMetadataSpec, ServiceSpec, StreamRouteSpec, UpstreamSpec
from streamgw.config.strict import Fault, Wrong, structure
from streamgw.config.tls import Credentials, rest_of_upstream
from streamgw.config.yaml_reader import Path
from streamgw.core.errors import Problem
from streamgw.core.hooks import Hooks, PluginContext, UpstreamUse
from streamgw.core.model import Key, Upstream
from streamgw.core.variables import NAMES, ROUTE_VARIABLES, lookup

T = TypeVar("T")


class HookWorkshop:
    """What is kept from load to load. Not for two threads at once.

    Options and hooks are kept by what they were made of: that is a promise to plugins. `memory` only saves time: what was
    found out about documents that are the very same as before. One edit among 1,000 routes with two plugins each loads in
    38 ms instead of 65; without plugins in 32 (best of 8, two busy cores).
    """

    def __init__(self) -> None:
        self.options: Kept[object] = Kept()
        self.hooks: Kept[Hooks] = Kept()
        self.memory = _Memory()

    def finish(self, *, forget: bool) -> None:
        """A load is over: see `Kept.finish`."""
        self.options.finish(forget=forget)
        self.hooks.finish(forget=forget)


@attrs.frozen(eq=False)
class Fitting:
    """One plugin of one object, its options read."""

    plugin: AnyPlugin
    use: PluginUse
    owner: str
    """`stream_routes/1/plugins/limit-conn`."""
    options: object = attrs.field(repr=False)
    key: str
    """Digest of the plugin's name and of the options with references resolved: equal keys mean the same."""
    upstream_ids: tuple[str, ...]
    """Of `upstreams`, to be had ready for `UseUpstream`."""
    upstreams: tuple[Upstream, ...]
    """Described on the spot."""
    speaks_tls: bool
    """One of these does."""

    @property
    def priority(self) -> int:
        """Where among the plugins of its route it runs."""
        return self.plugin.priority if self.use.meta.priority is None else self.use.meta.priority


@attrs.frozen
class _Fitted:
    """What was found out about the plugins of one document, which depends on nothing but it."""

    document: Document
    fittings: tuple[Fitting, ...]
    warnings: tuple[tuple[Document, Fault], ...]
    references: tuple[tuple[Document, Path, Key], ...]


@attrs.frozen
class _Hooked:
    """The hooks of one plugin on one route, and what they were made of."""

    route: Document
    service: Document | None
    fitting: Fitting
    metadata: str
    key: str
    hooks: Hooks

    def is_of(self, route: Document, service: Document | None, fitting: Fitting, metadata: str) -> bool:
        """They would be made of the very same today."""
        return (
            self.route is route
            and self.service is service
            and self.fitting is fitting
            and self.metadata == metadata
        )


@attrs.frozen
class _Memory:
    """Of one load, for the next."""

    plugins: PluginSet | None = None
    fitted: dict[Key, _Fitted] = attrs.field(factory=dict)
    hooked: dict[tuple[Key, str], _Hooked] = attrs.field(factory=dict)


class Fittings:
    """The plugins of every object of one state.

    Args:
      plugins: what there is.
      workshop: what earlier loads made.
      references: what `$env://` and `$file://` stand for.
      credentials: TLS of the upstreams that options describe; their faults go there.
    """

    def __init__(
        self,
        plugins: PluginSet,
        workshop: HookWorkshop,
        references: References,
        credentials: Credentials,
        documents: Sequence[Document],
    ) -> None:
        self.faults: list[tuple[Document, Fault]] = []
        self.warnings: list[tuple[Document, Fault]] = []
        self.references: list[tuple[Document, Path, Key]] = []
        """Objects that options refer to, and where."""
        self.digests: set[str] = set()
        """Of everything that options took from outside of the documents."""
        self._plugins = plugins
        self._workshop = workshop
        self._references = references
        self._credentials = credentials
        self._metadata: dict[str, tuple[object, str]] = {}
        self._by_key: dict[Key, tuple[Fitting, ...]] = {}
        self._before = workshop.memory if workshop.memory.plugins == plugins else _Memory()
        self._hooked: dict[tuple[Key, str], _Hooked] = {}
        # A load that is refused does not come as far as hooks: those of the one before stay.
        workshop.memory = self._memory = _Memory(plugins, hooked=self._before.hooked)
        self._is_by_itself = True
        """Of the document that is being looked at: nothing else counts."""
        for document in documents:
            if document.key[0] == "plugin_metadata":
                self._add_metadata(document)
        for document in documents:
            if document.key[0] in {"stream_routes", "services"}:
                self._by_key[document.key] = self._of_document(document, _uses_of(document))

    def of_route(self, route: Document, service: Document | None) -> tuple[Fitting, ...]:
        """What runs on a route, in its order: by priority, then by name."""
        assert isinstance(route.spec, StreamRouteSpec), "the collection decides the class"
        shared = self._by_key.get(service.key, ()) if service is not None else ()
        if not route.spec.plugins and not shared:
            return ()  # nearly every one of thousands, at each load
        fittings = {each.plugin.name: each for each in shared}
        for use in route.spec.plugins:
            fittings.pop(use.name, None)  # also one that is disabled here
        fittings |= {each.plugin.name: each for each in self._by_key[route.key]}
        return tuple(sorted(fittings.values(), key=lambda each: (-each.priority, each.plugin.name)))

    def hooks(self, fitting: Fitting, route: Document, service: Document | None) -> Hooks:
        """What a plugin does on this route: the record of an earlier load, if it was made of the same."""
        if self._workshop.memory.hooked is not self._hooked:
            self._workshop.memory = attrs.evolve(self._memory, hooked=self._hooked)
        metadata, metadata_text = self._metadata_of(fitting.plugin)
        place = (route.key, fitting.plugin.name)
        before = self._before.hooked.get(place)
        if before is not None and before.is_of(route, service, fitting, metadata_text):
            self._hooked[place] = before
            return self._workshop.hooks.get(before.key, lambda: before.hooks)
        known = self._known(route, service)
        key = digest_of(fitting.owner, fitting.key, fitting.use.meta_text, json.dumps(known), metadata_text)

        def make() -> Hooks:
            context = PluginContext(
                known=known, key=fitting.owner, metadata=metadata, services=self._plugins.services
            )
            hooks = fitting.plugin.build(fitting.options, context)
            condition = fitting.use.meta.filter
            applies = condition.bind(lambda name: lookup(name, known)) if condition is not None else None
            return attrs.evolve(hooks, plugin=fitting.plugin.name, applies=applies)

        hooks = self._workshop.hooks.get(key, make)
        self._hooked[place] = _Hooked(route, service, fitting, metadata_text, key, hooks)
        return hooks

    def problems(self) -> tuple[Problem, ...]:
        """Warnings about the plugins themselves."""
        return self._plugins.warnings

    def _known(self, route: Document, service: Document | None) -> Mapping[str, str]:
        """The variables that are the same for every client of a route. `ROUTE_VARIABLES` names them."""
        return {
            "route_id": route.key[1],
            "route_name": _name(route),
            "service_id": service.key[1] if service else "",
            "service_name": _name(service) if service else "",
            "hostname": self._plugins.services.hostname,
        }

    # Metadata

    def _add_metadata(self, document: Document) -> None:
        plugin = self._plugins.installed.get(document.key[1])
        if plugin is None or plugin.metadata is None:
            what = "no plugin of this name" if plugin is None else "this plugin has no metadata"
            self._warn(document, (), f"does nothing: {what}")
            return
        content = {
            name: value for name, value in document.data.items() if name not in PluginMetadataSpec.common()
        }
        try:
            data, text, _, missing = self._resolve(document, content)
            metadata = _beside(missing, functools.partial(structure, data, plugin.metadata))
        except Wrong as wrong:
            self.faults += ((document, fault) for fault in wrong.faults)
            return
        except Exception as error:  # noqa: BLE001  as for options
            message = f"plugin {plugin.name} cannot read its metadata: {error!r}"
            self.faults.append((document, Fault((), message)))
            return
        self._metadata[plugin.name] = metadata, text
        self.warnings += ((document, fault) for fault in getattr(metadata, "warnings", tuple)())

    def _metadata_of(self, plugin: AnyPlugin) -> tuple[object, str]:
        if plugin.metadata is None:
            return None, ""
        if plugin.name not in self._metadata:
            self._metadata[plugin.name] = structure({}, plugin.metadata), ""
        return self._metadata[plugin.name]

    # Options

    def _of_document(self, document: Document, uses: Sequence[PluginUse]) -> tuple[Fitting, ...]:
        if not uses:
            return ()
        before = self._before.fitted.get(document.key)
        if before is None or before.document is not document:
            return self._look_at(document, uses)
        self._memory.fitted[document.key] = before
        self.warnings += before.warnings
        self.references += before.references
        for each in before.fittings:
            self._workshop.options.get(each.key, functools.partial(getattr, each, "options"))
        return before.fittings

    def _look_at(self, document: Document, uses: Sequence[PluginUse]) -> tuple[Fitting, ...]:
        faults, warnings, references = len(self.faults), len(self.warnings), len(self.references)
        self._is_by_itself = True
        fittings = tuple(self._fit_all(document, uses))
        if self._is_by_itself and len(self.faults) == faults:
            self._memory.fitted[document.key] = _Fitted(
                document, fittings, tuple(self.warnings[warnings:]), tuple(self.references[references:])
            )
        return fittings

    def _fit_all(self, document: Document, uses: Sequence[PluginUse]) -> Iterator[Fitting]:
        for use in uses:
            path = ("plugins", use.name)
            try:
                fitting = self._fit(document, path, use)
            except Wrong as wrong:
                if not use.meta.disable:
                    self.faults += ((document, fault.under(path)) for fault in wrong.faults)
                    continue
                for fault in wrong.faults:  # tolerated, as in APISIX: somebody is in the middle of something
                    message = f"disabled, and would be refused otherwise: {fault.message}"
                    self.warnings.append((document, attrs.evolve(fault, message=message).under(path)))
            except Exception as error:  # noqa: BLE001  the code of a plugin, perhaps not ours: it must not end the reloader
                message = f"plugin {use.name} cannot read its options: {error!r}"
                self.faults.append((document, Fault(path, message, at_key=True)))
            else:
                if not use.meta.disable:
                    yield fitting

    def _fit(self, document: Document, path: Path, use: PluginUse) -> Fitting:
        plugin = self._plugins.find(use.name)
        data, text, referring, missing = self._resolve(document, use.options)
        key = digest_of(plugin.name, text)

        def read() -> object:
            try:
                return self._workshop.options.get(key, lambda: structure(data, plugin.options))
            except Wrong as wrong:
                raise Wrong(
                    *(_of_plugin(_masked(fault, referring), plugin) for fault in wrong.faults)
                ) from None

        options = _beside(missing, read)
        if use.meta.disable:
            return Fitting(plugin, use, "", options, key, (), (), speaks_tls=False)
        self._warn_of_meta(document, path, use)
        if plugin.name in self._plugins.idle:
            self._warn(document, path, f"does nothing: {self._plugins.idle[plugin.name]}")
        for warning in getattr(options, "warnings", tuple)():
            self.warnings.append((document, warning.under(path)))
        owner = "/".join((*document.key, *map(str, path)))
        uses = tuple(plugin.upstreams(options))
        for each in uses:
            if each.id:
                self.references.append((document, (*path, *each.path), ("upstreams", each.id)))
        described = [self._describe(document, plugin, owner, each) for each in uses if not each.id]
        return Fitting(
            plugin=plugin,
            use=use,
            owner=owner,
            options=options,
            key=key,
            upstream_ids=tuple(each.id for each in uses if each.id),
            upstreams=tuple(upstream for upstream in described if upstream is not None),
            speaks_tls=any(upstream is not None and upstream.tls is not None for upstream in described),
        )

    def _describe(
        self, document: Document, plugin: AnyPlugin, owner: str, use: UpstreamUse
    ) -> Upstream | None:
        """An upstream that options describe: everything that one of a route may have."""
        path: Path = ("plugins", plugin.name)
        where = (*path, *use.path)
        try:
            spec = structure(use.options, UpstreamSpec)
        except Wrong as wrong:
            inside = (_of_plugin(fault.under(use.path), plugin) for fault in wrong.faults)
            self.faults += ((document, fault.under(path)) for fault in inside)
            self._credentials.of_options(document, where, rest_of_upstream(use.options))
            return None
        self.warnings += ((document, fault.under(where)) for fault in spec.warnings())
        self._is_by_itself &= spec.scheme != "tls"  # certificates stand elsewhere
        return spec.build(use.key(owner), self._credentials.of_options(document, where, spec))

    def _warn_of_meta(self, document: Document, path: Path, use: PluginUse) -> None:
        if use.meta.error_response is not None:
            self._warn(document, (*path, "_meta", "error_response"), "does nothing at layer 4")
        unknown = (
            use.meta.filter.variables - NAMES - set(ROUTE_VARIABLES) - {"hostname"} if use.meta.filter else ()
        )
        for name in sorted(unknown):
            self._warn(
                document, (*path, "_meta", "filter"), f"no variable '{name}' at layer 4: it never has a value"
            )

    def _resolve(
        self, document: Document, options: Mapping[str, object]
    ) -> tuple[Mapping[str, object], str, Mapping[Path, str], Sequence[Fault]]:
        """Options with references replaced by what they stand for, the same as text, where there was one, and which of
        them stand for nothing.
        """
        found: dict[Path, str] = {}
        missing: list[Fault] = []
        directory = FilePath(document.source.file).parent

        def resolved(value: object, path: Path) -> object:
            if isinstance(value, dict):
                return {key: resolved(item, (*path, key)) for key, item in value.items()}
            if isinstance(value, list):
                return [resolved(item, (*path, at)) for at, item in enumerate(value)]
            if isinstance(value, str) and value.startswith("$") and "://" in value:
                found[path] = value
                try:
                    return self._references.resolve(value, directory).text
                except Wrong as wrong:
                    missing.extend(fault.under(path) for fault in wrong.faults)
            return value

        data = {key: resolved(value, (key,)) for key, value in options.items()}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        if found:
            self._is_by_itself = False
            self.digests.add(digest_of(text))
        return data, text, found, missing

    def _warn(self, document: Document, path: Path, message: str) -> None:
        self.warnings.append((document, Fault(path, message)))


def _uses_of(document: Document) -> tuple[PluginUse, ...]:
    if isinstance(document.spec, StreamRouteSpec | ServiceSpec):
        return document.spec.plugins
    return uses_in(document.data.get("plugins"))


def _beside(missing: Sequence[Fault], read: Callable[[], T]) -> T:
    """What is read, if no reference is missing; else also what is wrong elsewhere: what these would be is not known.

    Raises:
      Wrong: with all of it.
    """
    found: Sequence[Fault] = ()
    try:
        made = read()
    except Wrong as wrong:
        found = wrong.faults
    except Exception:
        if not missing:
            raise
        # A plugin's own code, which was given the reference for what it stands for.
    else:
        if not missing:
            return made
    places = [fault.path for fault in missing]
    raise Wrong(
        *missing, *(fault for fault in found if not any(fault.path[: len(at)] == at for at in places))
    )


def _of_plugin(fault: Fault, plugin: AnyPlugin) -> Fault:
    words = f"failed to check the configuration of stream plugin [{plugin.name}]: {fault.words}"
    return attrs.evolve(fault, apisix=words, is_final=True)


def _masked(fault: Fault, referring: Mapping[Path, str]) -> Fault:
    """Nothing that a reference stands for is shown: it may be a password."""
    for path, reference in referring.items():
        if fault.path[: len(path)] == path:
            return Fault(path, f"what {reference} stands for is not what is expected here")
    return fault


def _name(document: Document) -> str:
    assert isinstance(document.spec, StreamRouteSpec | ServiceSpec), "asked of nothing else"
    return document.spec.name or ""
