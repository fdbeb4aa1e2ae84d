from __future__ import annotations

from collections.abc import Mapping

import pytest

from streamgw.config.survey import Located
from streamgw.config.tree import Entry
from streamgw.control.admin.references import references, use_of
from streamgw.core.model import Key


def objects(**collections: Mapping[str, Mapping[str, object]]) -> dict[Key, Located]:
    entry = Entry("a.yaml", "routes.d/a.yaml", 0, 0, 0, 0, 0)
    return {
        (collection, id_): Located(
            (collection, id_), "routes.d/a.yaml", 1, 0, 0, data, "", entry, position=0, is_named=True
        )
        for collection, items in collections.items()
        for id_, data in items.items()
    }


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({}, []),
        ({"upstream_id": "u", "service_id": 7}, [("upstreams", "u"), ("services", "7")]),
        ({"upstream_id": "no id$", "service_id": None}, []),
        ({"tls": {"client_cert_id": "c"}}, [("ssls", "c")]),
        ({"upstream": {"tls": {"client_cert_id": "c"}}}, [("ssls", "c")]),
        ({"upstream": "text", "tls": [], "plugins": 1}, []),
        (
            {
                "plugins": {
                    "traffic-split": {"rules": [{"weighted_upstreams": [{"upstream_id": "u"}, {}, 1]}, 2]}
                }
            },
            [("upstreams", "u")],
        ),
        (
            {
                "plugins": {
                    "traffic-split": {
                        "rules": [
                            {
                                "weighted_upstreams": [
                                    {"upstream": {"tls": {"client_cert_id": "c"}}},
                                    {"upstream": 1},
                                ]
                            }
                        ]
                    }
                }
            },
            [("ssls", "c")],
        ),
        ({"plugins": {"traffic-split": {"rules": {"a": 1}}}}, []),
    ],
)
def test_every_reference_is_found(data: dict[str, object], found: list[Key]) -> None:
    assert list(references(data)) == found


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (("services", "s"), "can not delete this service directly, stream_route [r] is still using it now"),
        (("upstreams", "u"), "can not delete this upstream, service [s] is still using it now"),
        (("upstreams", "v"), "can not delete this upstream, stream_route [r] is still using it now"),
        (("ssls", "c"), "can not delete this ssl, upstream [u] is still using it now"),
        (("stream_routes", "r"), ""),
        (("upstreams", "free"), ""),
    ],
)
def test_what_is_used_cannot_go(key: Key, said: str) -> None:
    there = objects(
        services={"s": {"upstream_id": "u"}},
        stream_routes={"r": {"service_id": "s", "upstream_id": "v"}},
        upstreams={"u": {"tls": {"client_cert_id": "c"}}, "v": {}, "free": {}},
        ssls={"c": {"type": "client"}},
    )

    assert use_of(key, there) == said


def test_the_first_user_is_named() -> None:
    """In the order of the files."""
    there = objects(
        stream_routes={"r": {"upstream_id": "u"}}, services={"s": {"upstream_id": "u"}}, upstreams={"u": {}}
    )

    assert "stream_route [r]" in use_of(("upstreams", "u"), there)
