"""What plugins mean for the whole: upstreams that they may choose, references, what the snapshot lists."""

from __future__ import annotations

import attrs
import pytest

from streamgw.core.errors import Problem
from tests.config.test_hooks import UPSTREAM, Scene, names, problems, route_with


def test_upstreams_that_options_name_or_describe_are_ready() -> None:
    scene = route_with(
        "early: {id: '7', inline: {nodes: {db.example:1: 1}, retries: 3}}",
        "upstreams: [{id: 7, nodes: {10.0.0.7:1: 1}}, {id: 8, nodes: {10.0.0.8:1: 1}}]",
    )

    found = scene.load().snapshot

    inline = "stream_routes/r/plugins/early/inline"
    assert set(found.upstreams) == {"stream_routes/r/upstream", "upstreams/7", inline}
    assert found.upstreams[inline].retries == 3
    assert "db.example" in found.names


def test_a_route_may_have_none_but_those() -> None:
    scene = Scene("stream_routes: [{id: r, plugins: {early: {inline: {nodes: {10.0.0.1:1: 1}}}}}]")

    assert scene.load().warnings == ()
    assert scene.route().upstream is None


@pytest.mark.parametrize(
    "options", ["{inline: {nodes: {10.0.0.1:1: 1}, scheme: tls}}", "{id: u}", "{id: plain}"]
)
def test_tls_that_is_handed_on_goes_to_no_upstream_that_speaks_tls(options: str) -> None:
    scene = Scene(
        f"stream_routes: [{{id: r, tls_passthrough: true, {UPSTREAM}, plugins: {{early: {options}}}}}]\n"
        "upstreams: [{id: u, nodes: {10.0.0.2:1: 1}, scheme: tls}, {id: plain, nodes: {10.0.0.3:1: 1}}]"
    )

    if "plain" in options:
        assert names(scene.route()) == ["early"]
    else:
        (said,) = problems(scene)
        assert "handed on untouched" in said


def test_hooks_with_a_task_are_listed() -> None:
    snapshot = route_with("early: {word: task}, late: {}").load().snapshot

    assert [hooks.plugin for hooks in snapshot.backgrounds] == ["early"]


def test_a_plugin_that_cannot_be_built_is_a_problem_and_no_crash() -> None:
    assert problems(route_with("early: {fails: true}")) == [
        "stream_routes[0].plugins: plugin early cannot be built: ZeroDivisionError('no')"
    ]


def test_troubles_of_the_plugins_themselves_are_warnings() -> None:
    trouble = Problem("the plugins", 0, 0, "", "cannot be loaded")
    scene = route_with("early: {}")
    scene.plugins = attrs.evolve(scene.plugins, warnings=(trouble,))

    assert trouble in scene.load().warnings
