from __future__ import annotations

import itertools
import stat
from pathlib import Path
from random import Random

import pytest

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
    "text",
    [
        "a: &keys [{name: a, key: '', role: admin}]\ndeployment: {admin: {admin_key: *keys}}\n",
        "a: &admin {allow_admin: []}\ndeployment: {admin: *admin}\n",
        "a: &admin {admin: {allow_admin: []}}\ndeployment: *admin\n",
        "deployment:\n  admin:\n    ? allow_admin\n    : []\n",
    ],
    ids=["the keys elsewhere", "the section elsewhere", "all of it elsewhere", "unusual"],
)
def test_what_cannot_be_edited_safely_is_refused(config: Path, text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.yaml deployment\.admin\.admin_key: is empty, and cannot be filled"
    ):
        fill(config, text)

    assert config.read_text() == text


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
