"""The check that counts instructions: what it says about counts, and that what it counts is what is executed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "bench"))

from instructions import command
from instructions.baseline import (
    COMMITTED,
    Acceptance,
    Baseline,
    Change,
    ElsewhereCounted,
    Tolerance,
    accept,
    read,
    write,
)
from instructions.conclusions import conclusions
from instructions.counts import Counted, Counting, Counts
from instructions.environment import Environment, compiler_of, cython_of, first_numbers
from instructions.exercise import CountedPath, UnknownPath, select
from instructions.exercises import PATHS
from instructions.profiles import UnreadableProfile, instructions_of_objects
from instructions.valgrind import PathFailed, count
from instructions.verdict import Judgement, Verdict, judge

HERE = Environment(
    architecture="x86_64",
    python="3.11.7",
    compiler="GCC 12.2.0",
    cython="3.3.1",
    libc="glibc 2.36",
    numpy="2.4.6",
    vectors="avx2",
    valgrind="3.19.0",
)
BEFORE = {"lookup": Counts(100.0, 200.0), "pull": Counts(1000.0, 2000.0)}
BASELINE = Baseline(environment=HERE, paths=BEFORE, history=[Acceptance(date="2026-01-01", reason="The first count.")])

needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind is not installed (on Debian: apt-get install valgrind)"
)


def counting(environment: Environment = HERE, **paths: tuple[float, float]) -> Counting:
    """So many instructions in the core and in all, for each path; those of the baseline where none are given."""
    counts = BEFORE | {name: Counts(*pair) for name, pair in paths.items()}
    return Counting(environment, {name: Counted("call", pair) for name, pair in counts.items()})


def judged(found: Counting, is_whole: bool = True) -> tuple[Judgement, str]:
    judgement = judge(BASELINE, found, is_whole=is_whole)
    return judgement, "\n".join(conclusions(judgement, BASELINE.tolerance))


# ------------------------------------------------------------------------------------------------------ comparisons


def test_equal_counts_pass() -> None:
    judgement, said = judged(counting())
    assert not judgement.fails
    assert {path.verdict for path in judgement.paths} == {Verdict.SAME}
    assert "No path takes more" in said


@pytest.mark.parametrize(
    "counts",
    [(100.6, 200.0), (100.0, 206.1), (101.0, 190.0)],
    ids=["in the core", "in all", "in the core though not in all"],
)
def test_a_worse_path_fails_and_is_named(counts: tuple[float, float]) -> None:
    judgement, said = judged(counting(lookup=counts))
    assert judgement.fails
    assert judgement.having(Verdict.WORSE) == ["lookup"]
    assert "Takes more instructions than the baseline says: lookup." in said
    assert "No path takes more" not in said


@pytest.mark.parametrize("counts", [(100.4, 200.0), (100.0, 205.9), (99.6, 194.1)])
def test_within_the_tolerance_nothing_is_said(counts: tuple[float, float]) -> None:
    judgement, _ = judged(counting(lookup=counts))
    assert {path.verdict for path in judgement.paths} == {Verdict.SAME}


def test_a_better_path_passes_and_says_so() -> None:
    judgement, said = judged(counting(pull=(900.0, 1900.0)))
    assert not judgement.fails
    assert judgement.having(Verdict.BETTER) == ["pull"]
    assert "Takes fewer instructions than the baseline says: pull. Make sure of it with --accept REASON." in said


def test_what_the_core_did_not_do_before_is_worse() -> None:
    baseline = msgspec.structs.replace(BASELINE, paths={"empty call": Counts(0.0, 50.0)})
    found = Counting(HERE, {"empty call": Counted("call", Counts(0.5, 50.0))})
    assert judge(baseline, found, is_whole=True).having(Verdict.WORSE) == ["empty call"]


def test_a_path_without_a_baseline_fails_and_is_named() -> None:
    judgement, said = judged(counting(push=(5.0, 6.0)))
    assert judgement.fails
    assert "In no baseline: push." in said


def test_a_path_that_is_counted_no_more_fails_and_is_named() -> None:
    found = Counting(HERE, {"lookup": Counted("lookup", BEFORE["lookup"])})
    judgement, said = judged(found)
    assert judgement.fails
    assert "In the baseline, but counted no more: pull." in said
    assert not judged(found, is_whole=False)[0].fails


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("python", "3.12.7"),
        ("python", "3.11.7t"),
        ("compiler", "GCC 13.1.0"),
        ("compiler", "clang 12.2.0"),
        ("architecture", "aarch64"),
        ("cython", "3.4.1"),
    ],
)
def test_another_environment_is_not_compared(field: str, value: str) -> None:
    elsewhere = msgspec.structs.replace(HERE, **{field: value})
    judgement, said = judged(counting(elsewhere, lookup=(500.0, 900.0), push=(5.0, 6.0)))
    assert not judgement.fails
    assert {path.verdict for path in judgement.paths} == {Verdict.NOT_COMPARED}
    assert f"Not compared: the baseline is of another environment, in {field} (" in said
    assert value in said


@pytest.mark.parametrize(
    ("field", "value"),
    [("python", "3.11.8"), ("libc", "glibc 2.39"), ("numpy", "2.5.0"), ("vectors", "avx"), ("valgrind", "3.22.0")],
)
def test_where_another_interpreter_runs_it_only_the_core_is_compared(field: str, value: str) -> None:
    elsewhere = msgspec.structs.replace(HERE, **{field: value})
    judgement, said = judged(counting(elsewhere, lookup=(100.0, 900.0)))
    assert not judgement.fails
    assert f"Only the core is compared: it runs in another environment, in {field} (" in said
    assert judged(counting(elsewhere, lookup=(102.0, 200.0)))[0].having(Verdict.WORSE) == ["lookup"]


@pytest.mark.parametrize(("field", "value"), [("compiler", "GCC 12.3.0"), ("cython", "3.3.9"), ("valgrind", "3.19.1")])
def test_what_makes_no_difference_is_compared(field: str, value: str) -> None:
    judgement, _ = judged(counting(msgspec.structs.replace(HERE, **{field: value}), lookup=(102.0, 200.0)))
    assert judgement.having(Verdict.WORSE) == ["lookup"]


@pytest.mark.parametrize(
    ("text", "numbers", "expected"),
    [("GCC 12.2.0", 1, "GCC 12"), ("3.13.1t", 2, "3.13t"), ("x86_64", 9, "x86_64"), ("unknown", 1, "unknown")],
)
def test_versions_are_compared_by_their_first_numbers(text: str, numbers: int, expected: str) -> None:
    assert first_numbers(text, numbers) == expected


# ---------------------------------------------------------------------------------------------------------- baselines


def test_acceptance_keeps_what_changed_and_why(tmp_path: Path) -> None:
    after = accept(BASELINE, counting(lookup=(90.0, 190.0)), "A shorter probe.", "2026-02-01", is_whole=True)
    assert after.history[0] == Acceptance(
        date="2026-02-01",
        reason="A shorter probe.",
        paths={"lookup": Change(old=Counts(100.0, 200.0), new=Counts(90.0, 190.0))},
    )
    assert after.history[1:] == BASELINE.history
    write(after, tmp_path / "baseline.json")
    assert read(tmp_path / "baseline.json") == after
    assert not judge(after, counting(lookup=(90.0, 190.0)), is_whole=True).fails


def test_acceptance_of_some_paths_leaves_the_others() -> None:
    found = Counting(HERE, {"push": Counted("push", Counts(5.0, 6.0))})
    after = accept(BASELINE, found, "Pushes are counted.", "2026-02-01", is_whole=False)
    assert after.paths == BEFORE | {"push": Counts(5.0, 6.0)}
    assert after.history[0].paths == {"push": Change(old=None, new=Counts(5.0, 6.0))}
    assert accept(BASELINE, found, "Only these.", "2026-02-01", is_whole=True).paths == {"push": Counts(5.0, 6.0)}


def test_acceptance_keeps_the_tolerance() -> None:
    strict = msgspec.structs.replace(BASELINE, tolerance=Tolerance(0.001, 0.002))
    assert accept(strict, counting(), "Again.", "2026-02-01", is_whole=True).tolerance == Tolerance(0.001, 0.002)


def test_another_environment_is_accepted_as_a_whole_only() -> None:
    elsewhere = counting(msgspec.structs.replace(HERE, compiler="GCC 13.1.0"))
    with pytest.raises(ElsewhereCounted, match="compiler"):
        accept(BASELINE, elsewhere, "A newer compiler.", "2026-02-01", is_whole=False)
    after = accept(BASELINE, elsewhere, "A newer compiler.", "2026-02-01", is_whole=True)
    assert after.environment.compiler == "GCC 13.1.0"
    assert after.history[0].environment == {"compiler": ("GCC 12.2.0", "GCC 13.1.0")}


def test_the_committed_baseline_has_every_path() -> None:
    committed = read(COMMITTED)
    assert committed is not None
    assert set(committed.paths) == {path.name for path in PATHS}
    assert all(acceptance.reason for acceptance in committed.history)


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture
def counted_without_valgrind(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """What the command counts; the last one of it."""
    found = [counting()]
    monkeypatch.setattr(command, "count", lambda *_, **__: found[-1])
    return found


def test_the_command_fails_where_a_path_is_worse(
    counted_without_valgrind: list[Counting], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, counts = tmp_path / "baseline.json", tmp_path / "counts.json"
    to_file = ["--baseline", str(baseline)]
    assert command.main(to_file) == 1
    assert "does not exist" in capsys.readouterr().err
    assert command.main([*to_file, "--accept", " "]) == 2
    assert not baseline.exists()
    assert command.main([*to_file, "--accept", "The first count."]) == 0
    assert command.main([*to_file, "--json", str(counts)]) == 0
    assert msgspec.json.decode(counts.read_bytes(), type=Counting) == counting()
    counted_without_valgrind.append(counting(pull=(1100.0, 2100.0)))
    capsys.readouterr()
    assert command.main(to_file) == 1
    shown = capsys.readouterr().out
    assert "+10.00%" in shown and "worse" in shown
    assert command.main([*to_file, "--accept", "Pulls check more."]) == 0
    assert command.main(to_file) == 0


def test_the_folder_is_what_is_run() -> None:
    help_text = subprocess.run(
        [sys.executable, str(COMMITTED.parent), "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert help_text.startswith("usage: python bench/instructions ")


def test_the_command_says_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--path", "no such path"]) == 2
    assert "no path is called 'no such path'" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert command.main([]) == 2
    assert "apt-get install valgrind" in capsys.readouterr().err


def test_the_table_needs_no_rich(
    counted_without_valgrind: list[Counting],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    write(BASELINE, tmp_path / "baseline.json")
    assert command.main(["--baseline", str(tmp_path / "baseline.json")]) == 0
    assert "pull    call     1,000           1,000  =" in capsys.readouterr().out


def test_paths_are_selected_by_name() -> None:
    assert [path.name for path in select(PATHS, ["lookup ?i*"])] == ["lookup hit", "lookup miss"]
    assert select(PATHS, []) == list(PATHS)
    with pytest.raises(UnknownPath, match="nothing of the kind"):
        select(PATHS, ["lookup hit", "nothing of the kind"])


# ----------------------------------------------------------------------------------------------------------- profiles

PROFILE = """\
version: 1
desc: Trigger: Client Request: lookup: once
events: Ir
totals: 37

ob=(1) /core.so
fn=(1) look_up
10 5
cob=(2) /libc.so
cfn=(2) memcmp
calls=3 0
10 21
+1 2

ob=(2)
fn=(2)
0 21

ob=(1)
fn=(3) another
* 9
"""


def test_a_profile_counts_each_instruction_once() -> None:
    label, instructions = instructions_of_objects(PROFILE.splitlines())
    assert label == "lookup: once"
    assert dict(instructions) == {"/core.so": 16, "/libc.so": 21}


def test_a_profile_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(UnreadableProfile, match="37 instructions were read, callgrind counted 38"):
        instructions_of_objects(PROFILE.replace("totals: 37", "totals: 38").splitlines())


def test_the_compiler_is_told_by_what_it_compiled() -> None:
    assert compiler_of(b"\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0") == "GCC 12.2.0"
    assert compiler_of(b"\0clang version 16.0.6 (abc)\0GCC: (Debian) 12.2.0\0") == "clang 16.0.6"
    assert cython_of(b"\0_cython_3_3_1.generator\0") == "3.3.1"
    assert (compiler_of(b""), cython_of(b"")) == ("unknown", "unknown")


# --------------------------------------------------------------------------------------------------------- real counts

LOOKUP = select(PATHS, ["lookup hit"])


def beside_an_altered_one(tmp_path: Path, body: str) -> str:
    """The name of a module in `tmp_path` with the lookup of hits, and one of another name whose loop has this body."""
    lines = [
        "from dataclasses import replace",
        "from instructions.exercise import select",
        "from instructions.exercises import PATHS as ALL",
        "from instructions.exercises.lookups import Lookup",
        "class Altered(Lookup):",
        "    def __init__(self):",
        "        super().__init__(live=10_000, bound=True)",
        "    def run(self, turns):",
        "        lookup, found = self._manager.lookup, None",
        "        for key in self._keys:",
        f"            {body}",
        "        self._found = found",
        "PATHS = select(ALL, ['lookup hit'])",
        "PATHS.append(replace(PATHS[0], name='altered', exercise=Altered))",
    ]
    (tmp_path / "beside.py").write_text("\n".join(lines))
    return "beside"


BOTH = [*LOOKUP, replace(LOOKUP[0], name="altered")]


@needs_valgrind
def test_counts_are_the_same_every_time_and_a_worse_path_is_found(tmp_path: Path) -> None:
    once = count(LOOKUP)
    first = once.paths["lookup hit"].counts
    second = count(BOTH, beside_an_altered_one(tmp_path, "found = lookup(key); found = lookup(key)"), [str(tmp_path)])
    assert second.environment == once.environment
    assert "unknown" not in msgspec.structs.astuple(once.environment)
    again = second.paths["lookup hit"].counts
    assert first.core == again.core > 50
    assert again.everything == pytest.approx(first.everything, rel=0.03)
    assert again.everything > again.core
    doubled = second.paths["altered"].counts
    assert doubled.core == pytest.approx(2 * again.core, rel=0.001)
    baseline = accept(None, once, "As it is.", "2026-01-01", is_whole=True)
    worse = Counting(second.environment, {"lookup hit": second.paths["altered"]})
    assert judge(baseline, worse, is_whole=True).having(Verdict.WORSE) == ["lookup hit"]


@needs_valgrind
def test_a_path_that_does_something_else_has_no_count(tmp_path: Path) -> None:
    with pytest.raises(PathFailed, match="altered: the last lookup found something else"):
        count(BOTH[1:], beside_an_altered_one(tmp_path, "pass"), [str(tmp_path)])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_exercise_is_right(path: CountedPath) -> None:
    """Without valgrind, which would take longer. A link needs the kernel's own words then, and has them."""
    exercise = path.exercise()
    try:
        for turns in (path.turns, 2 * path.turns):
            exercise.prepare(turns)
            exercise.run(turns)
            exercise.inspect(turns)
    finally:
        exercise.close()
