"""Which hooks a route gets, by way of a whole load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import attrs
import pytest

from streamgw.config.compile import Compilation, Loader
from streamgw.config.documents import SourceFile
from streamgw.config.plugins import AnyPlugin, PluginSet
from streamgw.config.rules import AnyMapping, Id, integer
from streamgw.config.strict import Fault
from streamgw.core.errors import ConfigError
from streamgw.core.hooks import Hooks, Plugin, PluginContext, PluginServices, UpstreamUse
from streamgw.core.model import Facts, Outcome, Revision, Route
from tests.support.scenes import facts

UPSTREAM = "upstream: {nodes: {10.0.0.1:1: 1}}"


@attrs.frozen(kw_only=True)
class Options:
    """Of a plugin that notes what it is built of."""

    number: Annotated[int, integer(0, 9)] = 0
    word: str = ""
    id: Id | None = None
    inline: AnyMapping | None = None
    plain: int = 0
    """Whatever a text is to cattrs: a plugin need not be strict."""
    fails: bool = False
    is_odd: bool = False

    def warnings(self) -> Iterator[Fault]:
        if self.is_odd:
            yield Fault(("is_odd",), "is odd")


@attrs.frozen(kw_only=True)
class Metadata:
    size: Annotated[int, integer(0, 9)] = 1

    def warnings(self) -> Iterator[Fault]:
        if self.size == 0:
            yield Fault(("size",), "0 is of no use")


@attrs.frozen
class Built:
    """What a hook remembers, to be asked through `on_close`."""

    options: Options
    context: PluginContext

    def __call__(self, _: Facts, __: Outcome) -> None: ...


def build(options: Options, context: PluginContext) -> Hooks:
    if options.fails:
        raise ZeroDivisionError("no")
    return Hooks(on_close=Built(options, context), background=_forever if options.word == "task" else None)


async def _forever() -> None: ...


def upstreams(options: Options) -> Iterator[UpstreamUse]:
    if options.id is not None:
        yield UpstreamUse(("id",), id=options.id)
    if options.inline is not None:
        yield UpstreamUse(("inline",), options=options.inline)


def plugin(name: str, priority: int) -> AnyPlugin:
    return Plugin(
        name=name,
        priority=priority,
        options=Options,
        build=build,
        metadata=Metadata if name == "early" else None,
        upstreams=upstreams,
    )


INSTALLED = {"early": plugin("early", 30), "middle": plugin("middle", 20), "late": plugin("late", 10)}


@attrs.frozen
class Tree:
    files: tuple[SourceFile, ...]
    revision: Revision


@attrs.define
class Scene:
    """A directory of one file, and a loader that remembers."""

    text: str
    environ: Mapping[str, str] = attrs.field(factory=dict)
    plugins: PluginSet = PluginSet(INSTALLED, services=PluginServices(hostname="gw"))
    directory: str = "routes.d"
    loader: Loader = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.loader = Loader(self, environ=self.environ, plugins=lambda: self.plugins)

    def read(self) -> Tree:
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        file = SourceFile(f"{self.directory}/a.yaml", self.text.encode(), digest, "a.yaml")
        return Tree((file,), Revision(digest))

    def load(self) -> Compilation:
        return self.loader.load(())

    def route(self) -> Route:
        (route,) = self.load().snapshot.router.routes
        return route

    def edit(self, old: str, new: str) -> None:
        assert old in self.text
        self.text = self.text.replace(old, new)


def route_with(plugins: str, *more: str) -> Scene:
    return Scene("\n".join(["stream_routes:", f"- {{id: r, {UPSTREAM}, plugins: {{{plugins}}}}}", *more]))


def built(hooks: Hooks) -> Built:
    assert isinstance(hooks.on_close, Built)
    return hooks.on_close


def names(route: Route) -> list[str]:
    return [hooks.plugin for hooks in route.hooks]


def problems(scene: Scene) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        scene.load()
    return [f"{problem.pointer}: {problem.message}" for problem in refused.value.problems]


def warnings(scene: Scene) -> list[str]:
    found = [warning for warning in scene.load().warnings if ".plugins" in warning.pointer]
    return [f"{warning.pointer.partition('.plugins.')[2]}: {warning.message}" for warning in found]


def test_a_route_without_plugins_has_no_hooks() -> None:
    assert Scene(f"stream_routes:\n- {{id: r, {UPSTREAM}}}").route().hooks == ()


def test_plugins_run_by_priority() -> None:
    assert names(route_with("late: {}, early: {}, middle: {}").route()) == ["early", "middle", "late"]


def test_a_route_may_say_another_priority() -> None:
    scene = route_with("late: {_meta: {priority: 99}}, early: {}, middle: {_meta: {priority: -1}}")

    assert names(scene.route()) == ["late", "early", "middle"]


def test_plugins_of_the_same_priority_run_by_name() -> None:
    scene = route_with("middle: {_meta: {priority: 1}}, late: {_meta: {priority: 1}}")

    assert names(scene.route()) == ["late", "middle"]


def test_a_disabled_plugin_does_not_run() -> None:
    assert names(route_with("early: {_meta: {disable: true}}, late: {}").route()) == ["late"]


def test_a_plugin_is_built_with_its_options_for_its_route() -> None:
    scene = Scene(
        "stream_routes:\n"
        f"- {{id: r, name: db, service_id: s, {UPSTREAM}, plugins: {{early: {{number: 7}}}}}}\n"
        "services: [{id: s, name: shared}]"
    )

    found = built(scene.route().hooks[0])

    assert found.options == Options(number=7)
    assert found.context.known == {
        "route_id": "r",
        "route_name": "db",
        "service_id": "s",
        "service_name": "shared",
        "hostname": "gw",
    }
    assert found.context.services is scene.plugins.services


# ── Services ─────────────────────────────────────────────────────────────────────────────────────


def with_service(of_route: str, of_service: str) -> Scene:
    return Scene(
        f"stream_routes: [{{id: r, service_id: s, plugins: {{{of_route}}}}}]\n"
        f"services: [{{id: s, {UPSTREAM}, plugins: {{{of_service}}}}}]"
    )


def test_a_route_has_the_plugins_of_its_service_too() -> None:
    assert names(with_service("late: {}", "early: {}").route()) == ["early", "late"]


def test_of_the_same_plugin_the_routes_counts_as_a_whole() -> None:
    scene = with_service("early: {word: a}", "early: {number: 7, _meta: {priority: -1}}, middle: {}")

    route = scene.route()
    assert names(route) == ["early", "middle"]
    assert built(route.hooks[0]).options == Options(word="a")


def test_a_route_may_switch_off_what_its_service_has() -> None:
    assert names(with_service("early: {_meta: {disable: true}}", "early: {}, late: {}").route()) == ["late"]


def test_plugins_of_a_service_are_checked_even_if_no_route_uses_it() -> None:
    scene = Scene("services: [{id: s, plugins: {early: {number: 10}, nope: {}}}]")

    assert problems(scene) == [
        "services[0].plugins.early.number: expected an integer 0–9, got 10",
        "services[0].plugins.nope: unknown plugin [nope]",
    ]


def test_an_upstream_by_id_does_not_take_the_services_plugins_away() -> None:
    """In APISIX it does; its service is then not looked at."""
    scene = Scene(
        "stream_routes: [{id: r, service_id: s, upstream_id: u}]\n"
        "upstreams: [{id: u, nodes: {10.0.0.1:1: 1}}]\n"
        "services: [{id: s, plugins: {early: {}}}]"
    )

    assert names(scene.route()) == ["early"]


# ── Beside other faults ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("collection", ["stream_routes", "services"])
def test_plugins_are_looked_at_whatever_else_is_wrong_with_their_object(collection: str) -> None:
    """One wrong field used to hide every fault of the plugins: mended, the object was refused for the next ones."""
    plugins = "early: {number: 10}, late: {id: gone}, nope: {}, middle: 5"
    scene = Scene(f"{collection}: [{{id: r, desc: 5, plugins: {{{plugins}}}}}]")

    assert problems(scene) == [
        f"{collection}[0].desc: expected text, got 5",
        f"{collection}[0].plugins.early.number: expected an integer 0–9, got 10",
        f"{collection}[0].plugins.late.id: no upstream has the id 'gone'",
        f"{collection}[0].plugins.nope: unknown plugin [nope]",
        f"{collection}[0].plugins.middle: expected a mapping with the options of the plugin, got 5",
    ]


def test_options_are_looked_at_whatever_else_is_said_about_their_plugin() -> None:
    plugins = "early: {number: 10, _meta: {prioriti: 1}}, late: {number: 10, _meta: {disable: true, a: 1}}"

    said = [said.removeprefix("stream_routes[0].plugins.") for said in problems(route_with(plugins))]

    assert said == [
        "early.number: expected an integer 0–9, got 10",
        "early._meta.prioriti: unknown field 'prioriti', did you mean 'priority'?",
        "late._meta.a: unknown field 'a'",
    ]


def test_what_are_no_plugins_at_all_is_one_problem() -> None:
    assert problems(Scene("services: [{id: s, plugins: [early]}]")) == [
        "services[0].plugins: expected a mapping, got a list"
    ]


def test_metadata_is_looked_at_whatever_else_is_wrong_with_its_object() -> None:
    scene = route_with("early: {}", "plugin_metadata: [{id: early, desc: 5, size: 10}]")

    assert problems(scene) == [
        "plugin_metadata[0].desc: expected text, got 5",
        "plugin_metadata[0].size: expected an integer 0–9, got 10",
    ]


def test_the_tls_of_an_upstream_in_options_is_looked_at_whatever_else_is_wrong_with_it() -> None:
    inline = f"{{scheme: tls, nodes: 5, tls: {{client_cert: {'x' * 200}, client_key: 5}}}}"

    assert [
        said.partition(".inline.")[2] for said in problems(route_with(f"early: {{inline: {inline}}}"))
    ] == [
        "nodes: expected a mapping of host:port to weight, or a list of nodes, got 5",
        "tls.client_cert: failed to parse cert: no certificate in PEM form",
        "tls.client_key: expected text",
    ]


def test_options_are_looked_at_even_if_a_reference_in_them_is_missing() -> None:
    options = "{word: $env://NONE, number: 10, inline: {a: $env://NO, b: [$env://NONE]}, id: $env://NO}"

    said = [
        said.removeprefix("stream_routes[0].plugins.early.")
        for said in problems(route_with(f"early: {options}"))
    ]

    assert sorted(said) == [
        "id: can't find environment variable NO",
        "inline.a: can't find environment variable NO",
        "inline.b[0]: can't find environment variable NONE",
        "number: expected an integer 0–9, got 10",
        "word: can't find environment variable NONE",
    ]


def test_what_a_plugin_makes_of_a_reference_that_is_missing_is_no_fault() -> None:
    assert problems(route_with("early: {plain: $env://NONE}")) == [
        "stream_routes[0].plugins.early.plain: can't find environment variable NONE"
    ]


def test_what_a_missing_reference_of_a_plugin_that_is_off_would_be_is_not_remembered() -> None:
    """Its file may be there at the next load, though the document is the same."""
    environ: dict[str, str] = {}
    scene = attrs.evolve(route_with("early: {_meta: {disable: true}, word: $env://WORD}"), environ=environ)
    said = "disabled, and would be refused otherwise: can't find environment variable WORD"
    assert warnings(scene) == [f"early.word: {said}"]

    environ["WORD"] = "a"

    assert warnings(scene) == []


# ── What is wrong ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("plugins", "ours", "apisix"),
    [
        ("nope: {}", "nope: unknown plugin [nope]", "unknown plugin [nope]"),
        (
            "early: {number: 10}",
            "early.number: expected an integer 0–9, got 10",
            "failed to check the configuration of stream plugin [early]: "
            'property "number" validation failed: expected 10 to be at most 9',
        ),
        (
            "early: {numbr: 1}",
            "early.numbr: unknown field 'numbr', did you mean 'number'?",
            "failed to check the configuration of stream plugin [early]: additional properties forbidden, found numbr",
        ),
        (
            "early: {id: u}",
            "early.id: no upstream has the id 'u'",
            "failed to fetch upstream info by upstream id [u], response code: 404",
        ),
        (
            "early: {inline: {nodes: {a: 1}}}",
            "early.inline.nodes.a: expected host:port with a port 1–65535, got 'a'",
            None,
        ),
    ],
)
def test_what_is_wrong_is_told_in_both_voices(plugins: str, ours: str, apisix: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        route_with(plugins).load()

    (problem,) = refused.value.problems
    assert f"{problem.pointer}: {problem.message}" == f"stream_routes[0].plugins.{ours}"
    assert problem.line == 2
    if apisix is not None:
        assert problem.error_msg == apisix


def test_a_plugin_that_is_switched_off_in_the_settings_is_unknown() -> None:
    scene = route_with("early: {}")
    assert names(scene.route()) == ["early"]

    scene.plugins = attrs.evolve(scene.plugins, enabled=frozenset({"late"}))

    assert problems(scene) == [
        "stream_routes[0].plugins.early: unknown plugin [early]: it is not in stream_plugins"
    ]


def test_what_is_wrong_with_a_disabled_plugin_is_tolerated() -> None:
    scene = route_with("early: {number: 10, _meta: {disable: true}}, nope: {_meta: {disable: true}}")

    assert scene.route().hooks == ()
    assert warnings(scene) == [
        "early.number: disabled, and would be refused otherwise: expected an integer 0–9, got 10",
        "nope: disabled, and would be refused otherwise: unknown plugin [nope]",
    ]


def test_a_disabled_plugin_refers_to_nothing() -> None:
    assert route_with("early: {id: u, _meta: {disable: true}}").route().hooks == ()


def test_what_has_no_effect_is_named() -> None:
    scene = route_with(
        "early: {is_odd: true, _meta: {error_response: {a: 1}, filter: [[arg_x, ==, '1'], [remote_addr, ==, x]]}}"
    )

    assert sorted(warnings(scene)) == [
        "early._meta.error_response: does nothing at layer 4",
        "early._meta.filter: no variable 'arg_x' at layer 4: it never has a value",
        "early.is_odd: is odd",
    ]


def test_options_that_cannot_be_read_at_all_are_a_problem_and_no_crash() -> None:
    @attrs.frozen
    class Unreadable:
        what: object

    scene = route_with("odd: {what: 1}")
    scene.plugins = PluginSet({"odd": Plugin(name="odd", priority=1, options=Unreadable, build=build)})

    (said,) = problems(scene)
    assert said.startswith(
        "stream_routes[0].plugins.odd: plugin odd cannot read its options: StructureHandler"
    )


# ── Filters ──────────────────────────────────────────────────────────────────────────────────────


def test_a_filter_is_asked_of_each_client() -> None:
    condition = "[[remote_addr, ipmatch, 10.0.0.0/8], [route_id, ==, r]]"
    (hooks,) = route_with(f"early: {{_meta: {{filter: {condition}}}}}").route().hooks

    assert hooks.applies is not None
    assert hooks.applies(facts("10.1.1.1"))
    assert not hooks.applies(facts("192.0.2.9"))


def test_without_a_filter_nobody_is_asked() -> None:
    (hooks,) = route_with("early: {}").route().hooks

    assert hooks.applies is None


# ── What a reload keeps ──────────────────────────────────────────────────────────────────────────


def test_an_edit_elsewhere_keeps_the_hooks() -> None:
    scene = route_with("early: {number: 1}, late: {}")
    before = scene.route().hooks

    scene.edit("10.0.0.1:1", "10.0.0.2:1")

    assert all(one is other for one, other in zip(before, scene.route().hooks, strict=True))


@pytest.mark.parametrize(
    ("old", "new"), [("number: 1", "number: 2"), ("id: r", "id: q"), ("_meta: {}", "_meta: {filter: []}")]
)
def test_an_edit_of_what_they_are_made_of_makes_new_ones(old: str, new: str) -> None:
    scene = route_with("early: {number: 1, _meta: {}}, late: {}")
    before = scene.route().hooks

    scene.edit(old, new)

    assert scene.route().hooks[0] is not before[0]


def test_a_rejected_edit_in_between_forgets_nothing() -> None:
    scene = route_with("early: {number: 1}")
    before = scene.route().hooks
    scene.edit("number: 1", "number: 10")
    assert problems(scene)

    scene.edit("number: 10", "number: 1")

    assert scene.route().hooks[0] is before[0]


def test_each_route_has_hooks_of_its_own() -> None:
    scene = Scene(
        "stream_routes: [{id: a, server_port: 1, service_id: s}, {id: b, server_port: 2, service_id: s}]\n"
        f"services: [{{id: s, {UPSTREAM}, plugins: {{early: {{}}}}}}]"
    )

    one, other = scene.load().snapshot.router.routes

    assert one.hooks[0] is not other.hooks[0]


# ── References ───────────────────────────────────────────────────────────────────────────────────


def test_a_value_may_be_an_environment_variable() -> None:
    scene = route_with('early: {word: "$env://WORD", inline: {a: ["$ENV://WORD"]}}')
    scene.environ = {"WORD": "hush"}
    scene.loader = Loader(scene, environ=scene.environ, plugins=lambda: scene.plugins)
    scene.edit(', inline: {a: ["$ENV://WORD"]}', "")

    assert built(scene.route().hooks[0]).options.word == "hush"


def test_a_value_may_be_a_file_and_its_content_counts(tmp_path: Path) -> None:
    (tmp_path / "word").write_text("one")
    scene = route_with("early: {word: $file://word}")
    scene.directory = str(tmp_path)
    before = scene.load().snapshot

    (tmp_path / "word").write_text("two")
    after = scene.load().snapshot

    assert tmp_path / "word" in scene.loader.files
    assert before.revision != after.revision
    assert built(after.router.routes[0].hooks[0]).options.word == "two"


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ("early: {word: $env://NONE}", "early.word: can't find environment variable NONE"),
        (
            "early: {inline: {nodes: [$env://NONE]}}",
            "early.inline.nodes[0]: can't find environment variable NONE",
        ),
        (
            "early: {word: $secret://vault/1/a}",
            "early.word: $secret:// is not available; use PEM text, $file://path or $env://NAME",
        ),
        (
            "early: {number: $env://WORD}",
            "early.number: what $env://WORD stands for is not what is expected here",
        ),
        ("early: {word: $env://WORD, number: 10}", "early.number: expected an integer 0–9, got 10"),
    ],
)
def test_what_a_reference_stands_for_is_never_shown(plugins: str, said: str) -> None:
    scene = Scene(route_with(plugins).text, environ={"WORD": "hush"})

    assert problems(scene) == [f"stream_routes[0].plugins.{said}"]


# ── Upstreams that plugins choose ────────────────────────────────────────────────────────────────


def test_what_such_an_upstream_says_in_vain_is_named() -> None:
    scene = route_with("early: {inline: {nodes: {}, pass_host: pass}}")

    assert warnings(scene) == [
        "early.inline.nodes: no node: every session that comes here is closed",
        "early.inline.pass_host: does nothing at layer 4",
    ]


def test_such_an_upstream_may_speak_tls() -> None:
    scene = route_with(
        "early: {inline: {nodes: {10.0.0.1:1: 1}, scheme: tls, tls: {server_name: db.example}}}"
    )

    tls = scene.load().snapshot.upstreams["stream_routes/r/plugins/early/inline"].tls

    assert tls is not None
    assert tls.server_name == "db.example"


def test_what_is_wrong_with_its_tls_has_its_place() -> None:
    scene = route_with("early: {inline: {nodes: {10.0.0.1:1: 1}, scheme: tls, tls: {client_cert_id: c}}}")

    assert problems(scene) == [
        "stream_routes[0].plugins.early.inline.tls.client_cert_id: "
        "failed to fetch ssl info by ssl id [c], response code: 404"
    ]


# ── Metadata ─────────────────────────────────────────────────────────────────────────────────────


def test_what_all_uses_share_is_given_to_each() -> None:
    scene = route_with("early: {}", "plugin_metadata: [{id: early, size: 5, desc: ours}]")

    assert built(scene.route().hooks[0]).context.metadata == Metadata(size=5)


def test_without_metadata_there_are_its_defaults() -> None:
    route = route_with("early: {}, late: {}").route()

    assert built(route.hooks[0]).context.metadata == Metadata()
    assert built(route.hooks[1]).context.metadata is None


def test_an_edit_of_the_metadata_makes_new_hooks() -> None:
    scene = route_with("early: {}", "plugin_metadata: [{id: early, size: 5}]")
    before = scene.route().hooks

    scene.edit("size: 5", "size: 6")

    assert built(scene.route().hooks[0]).context.metadata == Metadata(size=6)
    assert scene.route().hooks[0] is not before[0]


def test_wrong_metadata_is_a_problem() -> None:
    assert problems(Scene("plugin_metadata: [{id: early, size: 10}]")) == [
        "plugin_metadata[0].size: expected an integer 0–9, got 10"
    ]


def test_metadata_that_cannot_be_read_at_all_are_a_problem_and_no_crash() -> None:
    @attrs.frozen
    class Unreadable:
        what: int = 0

    scene = Scene("plugin_metadata: [{id: odd, what: x}]")
    odd = Plugin(name="odd", priority=1, options=Options, build=build, metadata=Unreadable)
    scene.plugins = PluginSet({"odd": odd})

    (said,) = problems(scene)
    assert said.startswith("plugin_metadata[0]: plugin odd cannot read its metadata: ValueError(")


def test_what_metadata_warn_of_is_a_warning() -> None:
    scene = Scene("plugin_metadata: [{id: early, size: 0}]")

    assert [f"{warning.pointer}: {warning.message}" for warning in scene.load().warnings] == [
        "plugin_metadata[0].size: 0 is of no use"
    ]


def test_metadata_that_nobody_reads_is_named() -> None:
    scene = Scene("plugin_metadata: [{id: late, size: 1}, {id: nope}]")

    assert [f"{warning.pointer}: {warning.message}" for warning in scene.load().warnings] == [
        "plugin_metadata[0]: does nothing: this plugin has no metadata",
        "plugin_metadata[1]: does nothing: no plugin of this name",
    ]


def test_a_plugin_that_does_nothing_under_these_settings_is_a_warning_wherever_it_is_used() -> None:
    scene = route_with(
        "late: {}, middle: {_meta: {disable: true}}", "services:", "- {id: s, plugins: {late: {}}}"
    )
    scene.plugins = attrs.evolve(scene.plugins, idle={"late": "nobody asks it", "middle": "nor this"})

    assert warnings(scene) == ["late: does nothing: nobody asks it"] * 2
    assert names(scene.route()) == ["late"]


# ── What a reload does not look at again ─────────────────────────────────────────────────────────


def two_files(scene: Scene) -> Tree:
    """The scene's file, and one beside it that nobody edits."""
    text = (
        "stream_routes: [{id: still, server_port: 1, service_id: s, plugins: {early: {is_odd: true, id: u}}}]\n"
        "services: [{id: s, upstream_id: u, plugins: {late: {}, middle: {inline: {nodes: {10.0.0.1:1: 1}}}}}]\n"
        "upstreams: [{id: u, nodes: {10.0.0.1:1: 1}}]"
    )
    other = SourceFile("routes.d/b.yaml", text.encode(), hashlib.sha256(text.encode()).hexdigest(), "b.yaml")
    tree = scene.read()
    return Tree((*tree.files, other), Revision(f"{tree.revision}b"))


@attrs.define
class TwoFiles:
    scene: Scene

    def read(self) -> Tree:
        return two_files(self.scene)


def test_what_was_said_of_a_document_that_is_the_same_is_said_again() -> None:
    scene = route_with("early: {number: 1}")
    loader = Loader(TwoFiles(scene), environ={}, plugins=lambda: scene.plugins)
    before = loader.load(())

    scene.edit("number: 1", "number: 2")
    after = loader.load(())

    assert [warning for warning in before.warnings if "is odd" in warning.message] == [
        warning for warning in after.warnings if "is odd" in warning.message
    ]
    old, new = ({route.id: route for route in each.snapshot.router.routes} for each in (before, after))
    assert names(new["still"]) == ["early", "middle", "late"]
    assert all(one is other for one, other in zip(old["still"].hooks, new["still"].hooks, strict=True))
    assert old["r"].hooks != new["r"].hooks
    assert "services/s/plugins/middle/inline" in after.snapshot.upstreams


def test_a_reference_to_what_has_gone_is_found_in_a_document_that_is_the_same() -> None:
    scene = route_with("early: {id: u2}", "upstreams: [{id: u2, nodes: {10.0.0.1:1: 1}}]")
    directory = TwoFiles(Scene(scene.text))
    loader = Loader(directory, environ={}, plugins=lambda: scene.plugins)
    loader.load(())

    directory.scene.edit("id: u2, nodes", "id: u3, nodes")

    with pytest.raises(ConfigError, match="no upstream has the id 'u2'"):
        loader.load(())


def test_hooks_outlive_loads_that_only_took_them_over() -> None:
    """A plugin's counts must not depend on how often a reload could save itself the work."""
    scene = route_with("early: {number: 1}")
    loader = Loader(TwoFiles(scene), environ={}, plugins=lambda: scene.plugins)
    first = {route.id: route.hooks for route in loader.load(()).snapshot.router.routes}
    for number in (2, 3):
        scene.edit(f"number: {number - 1}", f"number: {number}")
        loader.load(())

    fresh = TwoFiles(Scene(scene.text))
    fresh.scene.text += "\nupstreams: []"
    loader._parsed = {}
    loader._loaded = loader._checked = None
    loader._store = fresh
    last = {route.id: route.hooks for route in loader.load(()).snapshot.router.routes}

    assert last["still"][0] is first["still"][0]


def test_other_plugins_make_everything_be_looked_at_again() -> None:
    scene = route_with("early: {}")
    loader = Loader(TwoFiles(scene), environ={}, plugins=lambda: scene.plugins)
    loader.load(())

    scene.plugins = attrs.evolve(scene.plugins, enabled=frozenset({"early", "late"}))

    with pytest.raises(ConfigError, match=r"unknown plugin \[middle\]"):
        loader.load(())
