"""The page and the README's figures say what the results say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import made_up_results as made_up
import pytest
from llmdd.bench import page, plots, results
from llmdd.bench.case import Profile
from llmdd.bench.catalogue import cases_of
from llmdd.bench.pictures import Picture, pictures, series, size_name, telling
from matplotlib.figure import Figure
from typer.testing import CliRunner

from llmdd.cli import app

README = f"before\n{page.README_BEGIN}\nold\n{page.README_END}\nafter\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is written from a run."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "README.md").write_text(README)
    results.write(made_up.usual(), folder / "results.json")
    status, message = bench_page(
        str(folder / "results.json"), "--docs", str(folder / "docs"), "--readme", str(folder / "README.md")
    )
    assert status == 0, message
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another one with the same, to which commands are given."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a README, a run's results and nothing else, to which commands are given."""
    (tmp_path / "README.md").write_text(README)
    results.write(made_up.usual(), tmp_path / "results.json")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def bench_page(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", "page", *arguments])
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def section(text: str, heading: str) -> str:
    return text.partition(f"\n{heading}\n")[2].partition("\n## ")[0]


def test_what_was_written_is_found_right(copy: Path) -> None:
    assert bench_page("docs/benchmarks/results.json", "--check") == (0, "")
    assert results.read(copy / "docs/benchmarks/results.json", results.Run) == made_up.usual()


def test_the_same_results_give_the_same_files(copy: Path) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    first = files()
    assert bench_page("docs/benchmarks/results.json")[0] == 0
    assert files() == first


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("docs/benchmarks.md", "docs/benchmarks.md is not the page of these results"),
        ("README.md", "README.md has other figures than these results"),
    ],
)
def test_a_figure_that_was_changed_by_hand_is_found(copy: Path, file: str, complaint: str) -> None:
    path = copy / file
    path.write_text(path.read_text().replace("2.5 µs", "1.5 µs"))
    assert bench_page("results.json", "--check") == (1, complaint)


def test_a_plot_that_is_missing_is_found(copy: Path) -> None:
    (copy / "docs/benchmarks/pull-times.svg").unlink()
    assert bench_page("results.json", "--check") == (1, "docs/benchmarks/pull-times.svg is missing")


def test_checking_writes_nothing(repository: Path) -> None:
    status, complaints = bench_page("results.json", "--check")
    assert status == 1
    assert "docs/benchmarks.md is not the page" in complaints
    assert sorted(path.name for path in repository.iterdir()) == ["README.md", "results.json"]


def test_every_picture_of_the_page_is_there(written: Path) -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (written / "docs/benchmarks.md").read_text())
    assert shown
    assert sorted(shown) == sorted(f"benchmarks/{path.name}" for path in (written / "docs/benchmarks").glob("*.svg"))


def test_the_readme_has_three_figures(written: Path) -> None:
    readme = (written / "README.md").read_text()
    assert readme.startswith(f"before\n{page.README_BEGIN}\n| | llmdd | beside it |\n")
    assert readme.endswith(f"{page.README_END}\nafter\n")
    figures = [line for line in readme.splitlines() if line.startswith("| ") and "**" in line]
    assert figures == [
        "| pull a cache of 1 MiB from another process, by its key"
        " | **140 µs (7.49 GB/s)** | memcpy 150 µs (6.99 GB/s) |",
        "| pull 4 KiB while the owner's Python thread computes | **2.1 µs** | memcpy 400 ns |",
        "| a request's life in a day of 1,000 requests: bound, looked up, released | **2.5 µs** | dictionaries 9 µs |",
    ]


def test_a_readme_without_a_place_is_left_alone(repository: Path) -> None:
    (repository / "README.md").write_text("nothing here")
    status, complaint = bench_page("results.json")
    assert status == 2
    assert "README.md: it needs a line" in complaint
    assert (repository / "README.md").read_text() == "nothing here"
    assert not (repository / "docs").exists()


def test_an_interrupted_run_is_no_page(repository: Path) -> None:
    results.write(made_up.run(interrupted=True), repository / "results.json")
    status, complaint = bench_page("results.json")
    assert status == 2
    assert "results.json is of a run that was interrupted" in complaint


def test_who_is_faster_is_said() -> None:
    text = section(page.page(made_up.usual()), "## Where others are faster, and why")
    peers, floors = text.split("These do less than the case asks")
    assert re.findall(r"^- \*\*(.+?)\*\* in \[(.+?)\]", peers, re.MULTILINE) == [("vLLM BlockPool", "lookup")]
    assert "10 live: 100 ns beside llmdd's 120 ns" in peers
    assert re.findall(r"^- \*\*(.+?)\*\* in \[(.+?)\]", floors, re.MULTILINE) == [
        ("dict", "lookup"),
        ("memcpy", "pull"),
        ("memcpy", "gil"),
    ]
    assert "4 KiB: 400 ns beside llmdd's 2 µs. " in floors, "of 1 MiB, where llmdd is faster, nothing is said"


def test_why_is_said_only_where_it_is_known() -> None:
    run = made_up.run(made_up.case("call/empty", {"llmdd": 100, "somebody": 90, "empty call": 40}))
    [somebody, nothing] = re.findall(
        r"^- .*", section(page.page(run), "## Where others are faster, and why"), re.MULTILINE
    )
    assert somebody == f"- **somebody** in [call](#call): empty: 90 ns beside llmdd's 100 ns. {page.UNEXPLAINED}"
    assert nothing.endswith("empty: 40 ns beside llmdd's 100 ns. It does nothing.")


def test_if_nobody_is_faster_that_is_said() -> None:
    text = page.page(made_up.run(made_up.case("pull/4KiB", {"llmdd": 100, "NIXL": 200})))
    assert "no peer was faster than llmdd in any case" in section(text, "## Where others are faster, and why")
    assert "do less than the case asks" not in text


def test_how_often_llmdd_is_faster() -> None:
    lines = section(page.page(made_up.usual()), "## At a glance").splitlines()
    assert "| dictionaries | 2 of 2 | 3.33x to 3.60x |" in lines
    assert "| vLLM BlockPool | 0 of 1 | 0.83x to 0.83x |" in lines
    assert "| memcpy | 1 of 3 | 0.19x to 1.07x |" in lines
    assert not any(line.startswith("| NIXL") for line in lines)


def test_who_was_not_measured_is_said() -> None:
    text = section(page.page(made_up.usual()), "## Not measured")
    assert "- NIXL was skipped in pull/4KiB, pull/1MiB: NIXL is not installed: pip install NIXL" in text
    assert "- Mooncake did something wrong in gil/4KiB: byte 7 [of 4096] is wrong" in text
    assert "|  | Mooncake |  |  |  |  |  |  | **no** |" in page.page(made_up.usual())


def test_the_machine_and_versions_are_said() -> None:
    text = section(page.page(made_up.usual()), "## Where")
    for words in (
        "`llmdd bench --profile full`, 2026-01-02, 20 minutes",
        "A processor",
        "2 cores",
        "toys 1.2.3",
        "L2 512 KiB",
    ):
        assert words in text


@pytest.mark.parametrize("profile", Profile)
def test_the_words_are_about_everything_that_is_measured(profile: Profile) -> None:
    texts = page.Texts.read()
    cases = cases_of(profile)
    assert {case.group for case in cases} - set(texts.groups) == set()
    entrants = {one.name for case in cases for one in case.entrants if not one.name.startswith("llmdd, ")}
    assert entrants - set(texts.entrants) == set()


def test_a_group_has_the_pictures_that_it_has_figures_for() -> None:
    run = made_up.usual()
    assert pictures(run.cases_of("pull")) == [Picture.BARS, Picture.TIMES, Picture.RATES]
    assert telling(run.cases_of("pull")) == [Picture.TIMES, Picture.RATES]
    assert pictures(run.cases_of("day")) == [Picture.BARS, Picture.MEMORY]
    assert pictures(run.cases_of("lookup")) == telling(run.cases_of("lookup")) == [Picture.BARS]
    day = run.cases_of("day")[0]
    day.standings[1].measured = {"seconds": [0, 3600], "bytes": [0, 0]}
    assert [one.name for one in series(day)] == ["llmdd"], "an hour is much less than a day"
    nobody = made_up.case("gil/4KiB", {"llmdd": 1})
    nobody.standings = [made_up.wrong("llmdd")]
    assert pictures([nobody]) == []


def test_what_moves_nothing_has_a_time_and_no_rate() -> None:
    cases = [
        made_up.case(name, {"llmdd": 9000, "round trip": 50, "NIXL": 8000}, bytes_moved=place, place=place)
        for name, place in (("hosts/4KiB", 4096), ("hosts/64KiB", 65536))
    ]
    for case in cases:
        trip = case.standings[1]
        trip.moves_bytes = False
        assert case.rate_gb_s(trip) is None
        assert case.rate_gb_s(case.standings[0]) is not None
    assert labels(plots.times(cases)) == ["llmdd", "round trip", "NIXL"]
    assert labels(plots.rates(cases)) == ["llmdd", "NIXL"]


def labels(figure: Figure) -> list[str]:
    """The entrants that a plot shows."""
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_plots_are_pictures(tmp_path: Path) -> None:
    drawn = plots.draw(made_up.usual(), tmp_path)
    assert {path.suffix for path in drawn} == {".png", ".svg"}
    assert sorted(drawn) == sorted(tmp_path.iterdir())
    for path in drawn:
        begin = path.read_bytes()[:256]
        assert begin.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in begin


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cycle/1000000-live", "1,000,000 live"),
        ("pull/4KiB", "4 KiB"),
        ("blocks/1024x80", "1,024 x 80"),
        ("batch/64-keys-80-tensors", "64 keys 80 tensors"),
        ("pull-many/64x4KiB", "64 x 4 KiB"),
    ],
)
def test_sizes_read_well(name: str, size: str) -> None:
    assert size_name(made_up.case(name, {"llmdd": 1})) == size
