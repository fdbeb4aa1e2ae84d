"""Objects in the files they stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgw.config import survey as survey_module
from streamgw.config.disk import Disk
from streamgw.config.documents import digest_of
from streamgw.config.edit import NotEditable
from streamgw.config.survey import Surveyor
from streamgw.config.tree import Moment, build_tree, read_state

TWO = """\
stream_routes:
  - id: mysql # the main one
    server_port: ${{PORT}}
  - server_port: 6379
upstreams:
  - {id: 1, nodes: {"10.0.0.1:1": 1}}
"""


class LateDisk(Disk):
    """It is an hour later than the stamps of the files say: they are believed."""

    def now_ns(self) -> int:
        return super().now_ns() + 3600 * 10**9


def look(directory: Path, known: Moment | None = None) -> Moment:
    state = read_state(directory, LateDisk(), known.state if known else None)
    return Moment(state, build_tree(directory, state.contents))


def test_every_object_is_found_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TWO)

    survey = Surveyor(tmp_path).survey(look(tmp_path))

    mysql = survey.objects["stream_routes", "mysql"]
    assert (mysql.file, mysql.line, mysql.position) == (f"{tmp_path}/a.yaml", 2, 0)
    assert mysql.data == {"id": "mysql", "server_port": "${{PORT}}"}
    assert mysql.digest == digest_of(mysql.data)
    assert TWO[mysql.start : mysql.end] == "id: mysql # the main one\n    server_port: ${{PORT}}"
    assert mysql.entry.name == "a.yaml"
    assert [located.key[1] for located in survey.of("upstreams")] == ["1"]


def test_an_object_without_an_id_is_called_after_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TWO)

    survey = Surveyor(tmp_path).survey(look(tmp_path))

    unnamed = survey.objects["stream_routes", "a.yaml-2"]
    assert unnamed.data == {"server_port": 6379}
    assert not unnamed.is_named
    assert survey.objects["stream_routes", "mysql"].is_named


def test_only_files_that_changed_are_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(TWO)
    (tmp_path / "b.yaml").write_text("services: [{id: s}]")
    surveyor = Surveyor(tmp_path)
    before = look(tmp_path)
    first = surveyor.survey(before)
    parsed: list[str] = []
    decode = survey_module.edit.decode
    monkeypatch.setattr(
        survey_module.edit, "decode", lambda content: parsed.append(decode(content)) or decode(content)
    )

    (tmp_path / "b.yaml").write_text("services: [{id: t}]")
    after = surveyor.survey(look(tmp_path, before))

    assert parsed == ["services: [{id: t}]"]
    assert set(first.objects) - set(after.objects) == {("services", "s")}
    assert set(after.objects) - set(first.objects) == {("services", "t")}


def test_two_objects_of_one_name_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TWO)
    (tmp_path / "b.yaml").write_text(TWO)
    said = r"stream_routes mysql is defined more than once: .*/a\.yaml:2 and .*/b\.yaml:2"
    surveyor, moment = Surveyor(tmp_path), look(tmp_path)

    with pytest.raises(NotEditable, match=said):
        surveyor.survey(moment)
    with pytest.raises(NotEditable, match=said):
        surveyor.find(("stream_routes", "mysql"), moment.state)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("stream_routes: [")

    with pytest.raises(NotEditable, match=r"a\.yaml: line 1: not YAML"):
        Surveyor(tmp_path).survey(look(tmp_path))


def test_a_broken_file_shows_what_it_held_before(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TWO)
    (tmp_path / "b.yaml").write_text("services: [{id: s}]")
    surveyor = Surveyor(tmp_path)
    before = surveyor.survey(look(tmp_path), to_show=True)
    (tmp_path / "a.yaml").write_text("stream_routes: [")
    (tmp_path / "b.yaml").write_text("services: [{id: t}]")
    (tmp_path / "new.yaml").write_bytes(b"\xff")

    for _ in range(2):
        shown = surveyor.survey(look(tmp_path), to_show=True)
        assert shown.of("stream_routes") == before.of("stream_routes")
        assert {key for key in shown.objects if key[0] == "services"} == {("services", "t")}
    with pytest.raises(NotEditable, match=r"a\.yaml: line 1: not YAML"):
        surveyor.survey(look(tmp_path))

    (tmp_path / "a.yaml").write_text("")
    assert surveyor.survey(look(tmp_path), to_show=True).of("stream_routes") == before.of("stream_routes")
    with pytest.raises(NotEditable, match=r"a\.yaml: the file is empty"):
        surveyor.survey(look(tmp_path))

    (tmp_path / "a.yaml").write_text("{}")
    assert set(surveyor.survey(look(tmp_path), to_show=True).objects) == {("services", "t")}


def test_of_two_objects_of_one_name_the_first_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("services: [{id: s, name: one}]")
    (tmp_path / "b.yaml").write_text("services: [{id: s, name: two}]")

    shown = Surveyor(tmp_path).survey(look(tmp_path), to_show=True)

    assert [located.data["name"] for located in shown.of("services")] == ["one"]


def test_one_object_is_found_without_parsing_what_cannot_define_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TWO)
    (tmp_path / "b.yaml").write_text("broken: [")
    (tmp_path / "c.json").write_text(r'{"services": [{"id": "\u0073"}]}')
    surveyor, moment = Surveyor(tmp_path), look(tmp_path)

    mysql = surveyor.find(("stream_routes", "mysql"), moment.state)
    escaped = surveyor.find(("services", "s"), moment.state)

    assert mysql is not None
    assert mysql.line == 2
    assert escaped is not None
    assert escaped.file == f"{tmp_path}/c.json"
    assert surveyor.find(("services", "mysql"), moment.state) is None


def test_what_was_surveyed_is_found_without_parsing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text(TWO)
    surveyor, moment = Surveyor(tmp_path), look(tmp_path)
    surveyor.survey(moment)

    def parse(content: bytes) -> str:
        raise AssertionError("it is known what is in there")

    monkeypatch.setattr(survey_module.edit, "decode", parse)

    assert surveyor.find(("upstreams", "1"), moment.state) is not None
