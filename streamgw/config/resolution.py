"""All documents of one state, each looked at in the light of the others: references, routes, upstreams, what hides what.

What was made of documents that did not change is taken over from the state before (`Memory`).

Source:
  APISIX for what wins over what: `upstream_id`, then the route's own upstream, then the service's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import attrs

from streamgw.config.documents import Document, ParsedFile, id_of
from streamgw.config.hooks import Fitting, Fittings
from streamgw.config.reach import Reach
from streamgw.config.schema import ServiceSpec, StreamRouteSpec, UpstreamSpec
from streamgw.config.strict import Fault, nearest
from streamgw.config.tls import Credentials
from streamgw.config.yaml_reader import Path
from streamgw.core.errors import ConfigError, Problem
from streamgw.core.hooks import Hooks
from streamgw.core.model import (
    Certificate,
    DatagramRules,
    Key,
    Listener,
    Route,
    Upstream,
    UpstreamTLS,
)
from streamgw.core.router import Router

# Looking for the nearest of 1,000 names takes 10 ms: not for every line of a broken file.
_MAX_HINTS = 10
_MAX_NAMES = 1000


@attrs.frozen
class Memory:
    """What was made of documents that are still the same: a state differs from the one before it in a few of a thousand.

    Equal inputs give the very same route and upstream, which is also what the data plane likes best.
    """

    upstreams: dict[Key, tuple[Document, UpstreamTLS | None, Upstream]] = attrs.field(factory=dict)
    routes: dict[Key, tuple[tuple[object, ...], Route]] = attrs.field(factory=dict)
    reached: dict[Key, tuple[Route, tuple[Fault, ...]]] = attrs.field(factory=dict)
    """What `reach` said of each route."""
    reach: tuple[object, ...] = ()
    """What that depends on besides the route."""
    router: Router | None = None


class Resolution:
    """All documents of one state, each looked at in the light of the others."""

    def __init__(
        self,
        files: Sequence[ParsedFile],
        credentials: Credentials,
        fittings: Fittings,
        before: Memory,
        is_complete: bool,
    ) -> None:
        self.documents = tuple(document for file in files for document in file.documents)
        self.credentials = credentials
        self.fittings = fittings
        self.faults: list[tuple[Document, Fault]] = credentials.faults + fittings.faults
        self.warnings: list[tuple[Document, Fault]] = credentials.warnings + fittings.warnings
        self.digests = credentials.digests | fittings.digests
        self.memory = Memory()
        self._before = before
        self.upstreams: dict[str, Upstream] = {}
        """By key: every one that `routes` can reach."""
        self._file_problems = [problem for file in files for problem in file.problems]
        self._locations = {
            document.source.file: file.locations for file in files for document in file.documents[:1]
        }
        self._by_key: dict[Key, Document] = {}
        self._upstreams: dict[Key, Upstream] = {}
        self._index()
        # While a file cannot be read, nobody knows what it would have defined.
        if is_complete:
            self._check_references()
        self._check_passthrough()

    def raise_problems(self) -> None:
        """Stop here if anything is wrong, with everything that is.

        Raises:
          ConfigError: it is.
        """
        problems = self._file_problems + self.report(self.faults)
        if problems:
            raise ConfigError(tuple(sorted(problems)))

    def report(self, found: Sequence[tuple[Document, Fault]]) -> list[Problem]:
        """Faults as problems with a file and a line."""
        by_file: dict[str, list[Fault]] = {}
        for document, fault in found:
            by_file.setdefault(document.source.file, []).append(fault.inside(document.path))
        return [
            problem for file, faults in by_file.items() for problem in self._locations[file].problems(faults)
        ]

    def routes(self) -> list[tuple[Document, Route]]:
        """The routes that are on, in the order they are asked: priority, file, position."""
        found: list[tuple[Document, StreamRouteSpec]] = [
            (document, document.spec)
            for document in self.documents
            if isinstance(document.spec, StreamRouteSpec) and document.spec.status
        ]
        found.sort(key=lambda pair: -pair[1].priority)
        return [(document, self._route(document, spec)) for document, spec in found]

    def router(self, routes: Sequence[tuple[Document, Route]]) -> Router:
        """Who chooses among them."""
        router = Router([route for _, route in routes], self._before.router)
        self.memory = attrs.evolve(self.memory, router=router)
        return router

    def warn_of_shadows(self, router: Router, routes: Sequence[tuple[Document, Route]]) -> None:
        """Routes that an earlier one leaves nothing."""
        documents = {route.id: document for document, route in routes}
        for route, earlier in router.shadowed():
            message = (
                f"never wins: route {earlier.id} ({earlier.source}) comes first and takes all it asks for"
            )
            self.warnings.append((documents[route.id], Fault((), message)))

    def warn_of_reach(
        self,
        listeners: Sequence[Listener],
        entries: Sequence[tuple[str, Certificate]],
        routes: Sequence[tuple[Document, Route]],
    ) -> tuple[Problem, ...]:
        """Routes that ask for what no client can have. Returns what is wrong with the listeners themselves."""
        reach = Reach(listeners, entries)
        names = tuple(name for name, _ in entries)
        is_as_before = self._before.reach == (tuple(listeners), names)
        self.memory = attrs.evolve(self.memory, reach=(tuple(listeners), names))
        for document, route in routes:
            known = self._before.reached.get(document.key) if is_as_before else None
            if known is None or known[0] is not route:
                known = route, tuple(reach.faults(route, document.data))
            self.memory.reached[document.key] = known
            self.warnings += ((document, fault) for fault in known[1])
        return tuple(reach.problems())

    def _index(self) -> None:
        for document in self.documents:
            first = self._by_key.setdefault(document.key, document)
            if first is not document:
                message = f"'{document.key[1]}' is already defined at {first.source}"
                self.faults.append((document, Fault(("id",), message)))

    def _check_references(self) -> None:
        references: list[tuple[Document, Path, Key]] = [
            (document, (field,), key) for document in self.documents for field, key in _references(document)
        ]
        references += self.fittings.references
        dangling = [each for each in references if each[2] not in self._by_key]
        for number, (document, path, (collection, name)) in enumerate(dangling):
            hint = self._hint(collection, name) if number < _MAX_HINTS else ""
            kind = collection.removesuffix("s")
            words = f"failed to fetch {kind} info by {kind} id [{name}], response code: 404"
            fault = Fault(path, f"no {kind} has the id '{name}'{hint}", apisix=words, is_final=True)
            self.faults.append((document, fault))

    def _check_passthrough(self) -> None:
        for document in self.documents:
            spec = document.spec
            if isinstance(spec, StreamRouteSpec) and spec.status and spec.tls_passthrough:
                upstream = self._upstream_spec_of(spec)
                if (upstream is not None and upstream.scheme == "tls") or self._plugins_speak_tls(
                    document, spec
                ):
                    message = (
                        "the client's TLS is handed on untouched: its upstream cannot have 'scheme: tls'"
                    )
                    self.faults.append((document, Fault(("tls_passthrough",), message)))

    def _plugins_speak_tls(self, document: Document, spec: StreamRouteSpec) -> bool:
        """A plugin of this route may send a client to an upstream with `scheme: tls`."""
        service = self._by_key.get(("services", spec.service_id or ""))
        return any(
            fitting.speaks_tls or any(self._is_tls(name) for name in fitting.upstream_ids)
            for fitting in self.fittings.of_route(document, service)
        )

    def _is_tls(self, upstream_id: str) -> bool:
        found = self._by_key.get(("upstreams", upstream_id))
        return found is not None and isinstance(found.spec, UpstreamSpec) and found.spec.scheme == "tls"

    def _upstream_spec_of(self, owner: StreamRouteSpec | ServiceSpec) -> UpstreamSpec | None:
        """As `_upstream_of`, among objects that may have faults."""
        if owner.upstream_id is not None:
            found = self._by_key.get(("upstreams", owner.upstream_id))
            return found.spec if found is not None and isinstance(found.spec, UpstreamSpec) else None
        if owner.upstream is not None or isinstance(owner, ServiceSpec) or owner.service_id is None:
            return owner.upstream
        found = self._by_key.get(("services", owner.service_id))
        if found is None or not isinstance(found.spec, ServiceSpec):
            return None
        return self._upstream_spec_of(found.spec)

    def _hint(self, collection: str, name: str) -> str:
        known = (other for kind, other in self._by_key if kind == collection)
        return nearest(name, tuple(itertools.islice(known, _MAX_NAMES)))

    def _route(self, document: Document, spec: StreamRouteSpec) -> Route:
        upstream = self._upstream_of(document.key, spec)
        if upstream is None and spec.service_id is not None:
            upstream = self._upstream_of_service(document, spec.service_id)
        service = self._by_key[("services", spec.service_id)] if spec.service_id is not None else None
        fittings = self.fittings.of_route(document, service)
        chosen = [each for fitting in fittings for each in self._upstreams_for(fitting)]
        if upstream is not None:
            chosen.append(upstream)
        if not chosen:
            self.warnings.append((document, Fault((), "no upstream: every session that matches is closed")))
        for each in chosen:
            self.upstreams[each.key] = each
        hooks = tuple(self._hooks(fitting, document, service) for fitting in fittings)
        service_name = _name_of(service)
        inputs: tuple[object, ...] = (document, service_name, upstream, *hooks)
        known = self._before.routes.get(document.key)
        if known is None or known[0] != inputs:  # mostly the very same, which a tuple looks at first
            known = inputs, _build_route(document, spec, service_name, upstream, hooks)
        self.memory.routes[document.key] = known
        return known[1]

    def _upstreams_for(self, fitting: Fitting) -> Iterator[Upstream]:
        """What a plugin may choose among."""
        yield from fitting.upstreams
        for name in fitting.upstream_ids:
            yield self._upstream_by_id(name)

    def _hooks(self, fitting: Fitting, document: Document, service: Document | None) -> Hooks:
        try:
            return self.fittings.hooks(fitting, document, service)
        except Exception as error:  # noqa: BLE001  the code of a plugin, perhaps not ours: it must not end the reloader
            message = f"plugin {fitting.plugin.name} cannot be built: {error!r}"
            self.faults.append((document, Fault(("plugins",), message)))
            return Hooks()

    def _upstream_of_service(self, document: Document, service_id: str) -> Upstream | None:
        key = ("services", service_id)
        service = self._by_key[key].spec
        assert isinstance(service, ServiceSpec), "the collection decides the class"
        if service.type == "http":
            fault = Fault(("service_id",), f"service '{service_id}' is of type http, not stream")
            self.warnings.append((document, fault))
        return self._upstream_of(key, service)

    def _upstream_of(self, owner: Key, spec: StreamRouteSpec | ServiceSpec) -> Upstream | None:
        """The upstream that an object names or contains. Equal keys give the same value."""
        if spec.upstream_id is not None:
            return self._upstream_by_id(spec.upstream_id)
        if owner not in self._upstreams and spec.upstream is not None:
            self._upstreams[owner] = self._built(owner, spec.upstream, "{}/{}/upstream")
        return self._upstreams.get(owner)

    def _upstream_by_id(self, name: str) -> Upstream:
        key = ("upstreams", name)
        if key not in self._upstreams:
            spec = self._by_key[key].spec
            assert isinstance(spec, UpstreamSpec), "the collection decides the class"
            self._upstreams[key] = self._built(key, spec, "{}/{}")
        return self._upstreams[key]

    def _built(self, owner: Key, spec: UpstreamSpec, form: str) -> Upstream:
        document, tls = self._by_key[owner], self.credentials.of_upstream(owner)
        known = self._before.upstreams.get(owner)
        if known is None or known[0] is not document or known[1] != tls:
            known = document, tls, spec.build(form.format(*owner), tls)
        self.memory.upstreams[owner] = known
        return known[2]


def _build_route(
    document: Document,
    spec: StreamRouteSpec,
    service_name: str,
    upstream: Upstream | None,
    hooks: tuple[Hooks, ...],
) -> Route:
    return Route(
        id=document.key[1],
        match=spec.build_match(),
        upstream=upstream,
        source=document.source,
        priority=spec.priority,
        name=spec.name or "",
        service_id=spec.service_id or "",
        service_name=service_name,
        tls_passthrough=spec.tls_passthrough,
        udp=spec.udp.build() if spec.udp is not None else DatagramRules(),
        hooks=hooks,
    )


def _name_of(service: Document | None) -> str:
    return service.spec.name or "" if service is not None and isinstance(service.spec, ServiceSpec) else ""


def _references(document: Document) -> Iterator[tuple[str, Key]]:
    """What an object refers to. Read from what is written: an object with other problems has no spec."""
    for field, target in _REFERENCES.get(document.key[0], {}).items():
        if field in document.data and (name := id_of(document.data[field])):
            yield field, (target, name)


_REFERENCES: Mapping[str, Mapping[str, str]] = {
    "stream_routes": {"upstream_id": "upstreams", "service_id": "services"},
    "services": {"upstream_id": "upstreams"},
}
