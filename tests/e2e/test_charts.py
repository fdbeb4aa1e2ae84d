"""The pictures of docs/performance.md are drawn from results that are committed, and say the same in words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from bench.charts import DRAWN_FROM, PAGE, main
from bench.picture import Bar, Frame, Group, Span, draw_bars, draw_spans
from tests.support.child import run

ROOT = Path(__file__).parents[2]
_PICTURE = re.compile(r"!\[(?P<says>[^\]]*)\]\(images/(?P<file>bench-[^)]+)\)")
_RESULTS = re.compile(r"\.\./(bench/results/[\d-]+)/")


def draw(results: Path, page: Path) -> Result:
    return CliRunner().invoke(main, [str(results), "--page", str(page)])


def shown_results() -> Path:
    """The directory that the page says its figures are from."""
    found = set(_RESULTS.findall(PAGE.read_text()))
    assert len(found) == 1, "one page, one run"
    return ROOT / found.pop()


def words_of(svg: str) -> list[str]:
    return [text for element in ET.fromstring(svg).iter() if (text := (element.text or "").strip())]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return Path(shutil.copy(PAGE, tmp_path))


def test_the_committed_pictures_and_the_table_are_those_of_the_committed_results(page: Path) -> None:
    done = draw(shown_results(), page)

    assert done.exit_code == 0, done.output
    drawn = {path.name: path.read_text() for path in (page.parent / "images").iterdir()}
    committed = {path.name: path.read_text() for path in (PAGE.parent / "images").glob("bench-*.svg")}
    assert drawn == committed, "python -m bench.charts draws them anew"
    assert page.read_text() == PAGE.read_text()


def test_every_picture_stands_on_the_page_once_with_its_words() -> None:
    on_page = [(found["file"], found["says"]) for found in _PICTURE.finditer(PAGE.read_text())]

    committed = [path.name for path in (PAGE.parent / "images").glob("bench-*.svg")]
    assert sorted(file for file, _ in on_page) == sorted(committed)
    assert all(says.endswith(".") for _, says in on_page)


@pytest.mark.parametrize(
    "path", sorted((PAGE.parent / "images").glob("bench-*.svg")), ids=lambda path: path.name
)
def test_a_picture_says_when_and_on_what_machine_and_is_readable_in_the_dark(path: Path) -> None:
    abouts = [json.loads((shown_results() / name).read_text())["about"] for name in DRAWN_FROM]
    captions = tuple(f"{about['date']} · {about['machine']} · " for about in abouts)
    svg = path.read_text()

    assert any(words.startswith(captions) for words in words_of(svg))
    assert "@media (prefers-color-scheme: dark)" in svg
    assert ET.fromstring(svg).get("role") == "img"
    assert ET.fromstring(svg).get("aria-label")


def test_make_bench_saves_what_is_drawn() -> None:
    commands = run(["make", "--no-print-directory", "-n", "bench", "RESULTS=there"], cwd=ROOT).stdout

    assert set(re.findall(r"--json there/(\S+)", commands)) >= set(DRAWN_FROM)


def test_results_that_are_not_there_leave_their_pictures(tmp_path: Path, page: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(shown_results() / "memory.json", results)

    done = draw(results, page)

    assert [path.name for path in (page.parent / "images").iterdir()] == ["bench-memory.svg"]
    assert f"{results / 'pace.json'} is not there: its pictures stay as they are" in done.output


def test_a_directory_without_results_is_an_error(tmp_path: Path, page: Path) -> None:
    done = draw(tmp_path, page)

    assert done.exit_code == 1
    assert "can be drawn" in done.output


def test_the_words_on_the_page_follow_the_results(tmp_path: Path, page: Path) -> None:
    memory = json.loads((shown_results() / "memory.json").read_text())
    memory["kib_per_connection"] = {"streamgw": 1.0, "nginx": 3.0, "haproxy": 2.0}
    (tmp_path / "memory.json").write_text(json.dumps(memory))

    draw(tmp_path, page)

    says = {found["file"]: found["says"] for found in _PICTURE.finditer(page.read_text())}
    assert says["bench-memory.svg"].endswith("streamgw 1.00 KiB, haproxy 2.00 KiB, nginx 3.00 KiB.")


def test_bars_share_one_scale_that_begins_at_zero() -> None:
    groups = [Group("a", {"streamgw": Bar(1), "nginx": Bar(2)}), Group("b", {"streamgw": Bar(4)})]

    svg = draw_bars(Frame("Title", "caption"), groups, "{:g}".format)

    widths = [
        float(element.get("width", ""))
        for element in ET.fromstring(svg).iter()
        if element.tag.endswith("rect")
    ]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 2, 4])
    assert words_of(svg)[1:] == ["Title", "a", "1", "2", "b", "4", "caption"]


def test_a_round_beyond_the_median_is_inside_of_the_picture() -> None:
    svg = draw_bars(Frame("", ""), [Group("a", {"nginx": Bar(1, rounds=[0.5, 1, 9])})], "{:g}".format)

    assert all(0 < float(x) < 720 for x in re.findall(r'cx="([\d.]+)"', svg))


def test_a_span_stands_on_a_logarithmic_scale() -> None:
    span = Span("nginx", 1, 10, [(1, 10), (1, 100)])

    svg = draw_spans(Frame("", ""), {"pace": [span]}, "{:g}".format)

    low, high = (float(x) for x in re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="5.5"', svg))
    most = max(float(x) for x in re.findall(r'cx="([\d.]+)"', svg))
    assert high - low == pytest.approx(most - high, abs=0.2)
    assert words_of(svg)[1:] == ["pace", "nginx", "1", "10", "1", "2", "5", "10", "20", "50", "100"]
