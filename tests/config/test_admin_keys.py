from __future__ import annotations

import itertools
import json
import stat
import tempfile
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streamgw.config.admin_keys import fill_in_keys, random_key
from streamgw.config.disk import Disk
from streamgw.config.settings import load_settings
from streamgw.core.errors import ConfigError
from tests.support.crashing_disk import Crash, CrashingDisk


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def fill(config: Path, text: str, disk: Disk | None = None) -> int:
    numbers = itertools.count(1)
    config.write_text(text)
    return fill_in_keys(config, make_key=lambda: f"random{next(numbers)}", disk=disk)


APISIX = """\
# top
deployment:
  admin:   # who may
    # Default token when use API to call for Admin API.
    admin_key:
      -
        name: admin       # admin: write access
        key: {}           # If not set, it is generated
        role: admin
      - name: viewer
        key: quiet
        role: viewer
    allow_admin:
      - 127.0.0.0/24
"""


@pytest.mark.parametrize(
    ("written", "filled_in"), [('""', '"random1"'), ("''", "'random1'"), ("~", "random1"), ("", "random1")]
)
def test_only_the_characters_of_the_empty_key_change(config: Path, written: str, filled_in: str) -> None:
    assert fill(config, APISIX.format(written)) == 1

    blank = "" if written else " "  # stood behind the colon, and now behind the key
    assert config.read_text() == APISIX.format(filled_in + blank)


def test_a_null_is_empty_too(config: Path) -> None:
    fill(config, "deployment: {admin: {admin_key: [{name: a, key: null, role: admin}]}}")

    assert "key: random1" in config.read_text()


def test_each_empty_key_gets_its_own(config: Path) -> None:
    keys = "{name: a, key: '', role: admin}, {name: b, key: '', role: viewer}"

    assert fill(config, f"deployment: {{admin: {{admin_key: [{keys}]}}}}\n") == 2

    admin = load_settings(config, environ={}).admin
    assert admin is not None
    assert [key.key for key in admin.keys] == ["random1", "random2"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "deployment:\n  admin:\n    # ours\n    allow_admin: []\n",
            "deployment:\n  admin:\n    # ours\n    admin_key:\n      - name: admin\n        key: random1\n"
            "        role: admin\n    allow_admin: []\n",
        ),
        (
            "deployment: {admin: {}}",
            "deployment: {admin: {admin_key: [{name: admin, key: random1, role: admin}]}}",
        ),
        (
            "deployment: {admin: {https_admin: false}}",
            "deployment: {admin: {admin_key: [{name: admin, key: random1, role: admin}], https_admin: false}}",
        ),
    ],
)
def test_where_there_is_no_list_of_keys_one_is_added(config: Path, before: str, after: str) -> None:
    assert fill(config, before) == 1

    assert config.read_text() == after


@pytest.mark.parametrize(
    "text",
    [
        "",
        "apisix: {}",
        "deployment:",
        "deployment: {admin: }",
        "deployment: {admin: {admin_key_required: false}}",
        "deployment: {admin: {admin_key: [{name: a, key: hush, role: admin}]}}",
        "deployment: {admin: {admin_key: [{name: a, key: '${{KEY}}', role: admin}, hush, {name: b}]}}",
        "deployment: {admin: {admin_key: }}",
        "deployment: [",
        "- list",
    ],
)
def test_what_is_not_empty_or_not_understood_is_left_alone(config: Path, text: str) -> None:
    assert fill(config, text) == 0

    assert config.read_text() == text


def test_an_unreadable_file_is_somebody_elses_to_report(config: Path) -> None:
    assert fill_in_keys(config) == 0


@pytest.mark.parametrize(
    "keys",
    [
        "5",
        "true",
        "1.5",
        "2026-01-01",
        "hush",
        "[]",
        "{}",
        "{key: ''}",
        "[5, hush, [], ~]",
        "[{name: a, key: [], role: admin}]",
        "[{name: a, key: {}, role: admin}]",
        "[{name: a, key: 0, role: admin}]",
        "[{name: a, key: false, role: admin}]",
    ],
)
def test_what_is_of_another_shape_is_left_to_the_schema(config: Path, keys: str) -> None:
    text = f"deployment: {{admin: {{admin_key: {keys}}}}}\n"

    assert fill(config, text) == 0

    assert config.read_text() == text


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "a: &keys [{name: a, key: '', role: admin}]\ndeployment: {admin: {admin_key: *keys}}\n",
            "2:33 deployment.admin.admin_key[0].key",
        ),
        ("a: &admin {allow_admin: []}\ndeployment: {admin: *admin}\n", "2:21 deployment.admin.admin_key"),
        (
            "a: &admin {admin: {allow_admin: []}}\ndeployment: *admin\n",
            "2:13 deployment.admin.admin_key",
        ),
        ("deployment:\n  admin:\n    ? allow_admin\n    : []\n", "3:5 deployment.admin.admin_key"),
        (
            "a: &key {name: a, key: '', role: admin}\ndeployment: {admin: {admin_key: [*key]}}\n",
            "2:34 deployment.admin.admin_key[0].key",
        ),
        (
            "a: &key {name: a, key: ''}\ndeployment: {admin: {admin_key: [{<<: *key, role: admin}]}}\n",
            "2:34 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment:\n  admin:\n    admin_key:\n      - &a {name: admin, key: , role: admin}\n      - *a\n",
            "5:9 deployment.admin.admin_key[1].key",
        ),
        (
            "a: &none ''\ndeployment: {admin: {admin_key: [{name: a, key: *none, role: admin}]}}\n",
            "2:44 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment:\n  admin:\n    admin_key:\n      - {name: a, key: ''}\n      - {key}\n",
            "5:10 deployment.admin.admin_key[1].key",
        ),
        (
            "deployment: {admin: {admin_key: [{key, name: 'a:b'}]}}\n",
            "1:35 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment:\n  admin:\n    admin_key:\n      - ? key\n      - name: b\n",
            "4:11 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment: {admin: {admin_key: [{name: a, key: !!str , role: admin}]}}\n",
            "1:44 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment:\n  admin:\n    admin_key:\n      - key: |\n        name: a\n",
            "4:9 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment: {admin: {admin_key: [&a {name: a, key: ''}]}}\na: *a\n",
            "1:47 deployment.admin.admin_key[0].key",
        ),
        (
            "deployment: {admin: {admin_key: [{name: a, key: &none ''}]}}\na: *none\n",
            "1:44 deployment.admin.admin_key[0].key",
        ),
    ],
    ids=[
        "the keys elsewhere",
        "the section elsewhere",
        "all of it elsewhere",
        "unusual",
        "a key elsewhere",
        "merged",
        "one twice",
        "only the text elsewhere",
        "no value",
        "no value, and a colon later",
        "no value, and a dash",
        "a tag",
        "a block",
        "somebody else has it, too",
        "somebody else has its text, too",
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_its_place(config: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fill(config, text)

    (problem,) = refused.value.problems
    assert str(problem) == (
        f"{config}:{place}: is empty, and cannot be filled in without touching something else: write one"
    )
    assert config.read_text() == text


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["name", "key", "role"]) | st.text(), inner)
    ),
    max_leaves=8,
)
KEYS = st.fixed_dictionaries(
    {"key": st.sampled_from(["", None, "hush"]) | ANYTHING}, optional={"name": ANYTHING}
)


@given(keys=ANYTHING | st.lists(KEYS | ANYTHING), is_json=st.booleans())
def test_whatever_stands_there_only_empty_keys_change(keys: object, is_json: bool) -> None:
    document = {"deployment": {"admin": {"admin_key": keys}}}
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        text = json.dumps(document) if is_json else yaml.safe_dump(document)
        try:
            filled_in = fill(config, text)
        except ConfigError:
            assert config.read_text() == text
            return
        after = config.read_text()

    assert (after == text) == (filled_in == 0)
    assert after.count("random") - text.count("random") == filled_in


WRITTEN = [
    "key",
    "key: ",
    "{key}",
    "{name: a, key: ''}",
    "''",
    '""',
    "~",
    "|",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
]
PIECES = st.sampled_from([*WRITTEN, *":,?-[]{} \n", "- ", "\n      ", "# a: b", "${{A:=}}"])


@given(pieces=st.lists(PIECES, max_size=10), is_flow=st.booleans())
def test_nor_does_any_way_of_writing_it_break_anything(pieces: list[str], is_flow: bool) -> None:
    keys = "".join(pieces)
    text = (
        f"deployment: {{admin: {{admin_key: [{keys}]}}}}\n"
        if is_flow
        else f"deployment:\n  admin:\n    admin_key:\n      {keys}\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        try:
            filled_in = fill(config, text)
        except ConfigError:
            assert config.read_text() == text
        else:
            assert config.read_text().count("random") == filled_in


def test_whatever_step_is_the_last_one_there_is_one_whole_file(config: Path) -> None:
    before = APISIX.format('""')
    after = APISIX.format('"random1"')
    for at in itertools.count():
        disk = CrashingDisk(at, random=Random(at))
        try:
            fill(config, before, disk)
        except Crash:
            assert config.read_text() in {before, after}
        else:
            break
        assert fill(config, before) == 1, "what the dead one left behind is in nobody's way"

    assert disk.steps[-1] == "sync_directory"
    assert [path.name for path in config.parent.iterdir()] == ["config.yaml"]


class _FullDisk(Disk):
    def write(self, fd: int, data: bytes | memoryview) -> int:
        raise OSError(28, "No space left on device")


def test_a_disk_that_says_no_leaves_the_file_and_nothing_else(config: Path) -> None:
    with pytest.raises(ConfigError, match="a random key cannot be written here: No space left on device"):
        fill(config, APISIX.format("''"), _FullDisk())

    assert config.read_text() == APISIX.format("''")
    assert [path.name for path in config.parent.iterdir()] == ["config.yaml"]


def test_the_file_keeps_its_mode_and_a_link_stays_a_link(config: Path) -> None:
    real = config.with_name("real.yaml")
    real.write_text("")
    config.symlink_to(real)
    real.chmod(0o640)

    fill(config, APISIX.format("''"))

    assert config.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "random1" in real.read_text()


def test_a_random_key_has_32_letters_and_is_never_the_same() -> None:
    keys = {random_key() for _ in range(100)}

    assert len(keys) == 100
    assert all(len(key) == 32 and key.isalpha() and key.isascii() for key in keys)
