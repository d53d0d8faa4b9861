"""Whether runs agree about who is faster."""

from __future__ import annotations

from pathlib import Path

import made_up_results as made_up
import pytest
from llmdd.bench import results
from llmdd.bench.ordering import Comparison, Order, comparisons
from typer.testing import CliRunner

from llmdd.cli import app


def run_of(*, llmdd: float, nixl: float, variant: float = 100) -> results.Run:
    return made_up.run(
        made_up.case("pull/4KiB", {"llmdd": llmdd, "llmdd, registered": variant, "NIXL": nixl}),
        made_up.case("peers/4", {"llmdd": llmdd}),
    )


def order(tmp_path: Path, *runs: results.Run) -> tuple[int, str]:
    """The exit status of ``llmdd bench order``, and what it prints."""
    files = []
    for number, run in enumerate(runs):
        files.append(str(tmp_path / f"{number}.json"))
        results.write(run, Path(files[-1]))
    done = CliRunner().invoke(app, ["bench", "order", *files])
    return done.exit_code, " ".join(done.output.split())


def test_the_same_order_in_all_runs(tmp_path: Path) -> None:
    runs = run_of(llmdd=100, nixl=200), run_of(llmdd=300, nixl=310), run_of(llmdd=10, nixl=11)
    assert comparisons(runs) == [Comparison("pull/4KiB", "NIXL", (Order.FASTER,) * 3)]
    assert order(tmp_path, *runs) == (
        0,
        "pull/4KiB llmdd and NIXL faster All 1 are in the same order in all runs.",
    )


def test_another_order_in_one_of_them(tmp_path: Path) -> None:
    status, text = order(tmp_path, run_of(llmdd=100, nixl=200), run_of(llmdd=300, nixl=200))
    assert status == 1
    assert text == "pull/4KiB llmdd and NIXL faster, slower 1 of 1 differ from run to run."


def test_between_ways_to_use_llmdd_there_is_none_to_keep(tmp_path: Path) -> None:
    runs = run_of(llmdd=100, nixl=200, variant=90), run_of(llmdd=100, nixl=200, variant=110)
    assert order(tmp_path, *runs)[0] == 0


def test_a_case_that_one_run_lacks_is_no_agreement(tmp_path: Path) -> None:
    status, text = order(tmp_path, run_of(llmdd=100, nixl=200), made_up.run())
    assert status == 1
    assert "faster, unknown" in text


def test_who_was_skipped_in_one_run_is_no_agreement(tmp_path: Path) -> None:
    skipped = made_up.run(made_up.case("pull/4KiB", {"llmdd": 100}, made_up.absent("NIXL")))
    assert order(tmp_path, run_of(llmdd=100, nixl=200), skipped)[0] == 1
    assert order(tmp_path, skipped, skipped)[0] == 0


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ((run_of(llmdd=1, nixl=2),), "one run has nothing to be compared with"),
        ((made_up.run(), made_up.run()), "there is no peer in any of these runs"),
    ],
    ids=["one run", "no peer"],
)
def test_what_cannot_be_compared_is_explained(tmp_path: Path, runs: tuple[results.Run, ...], complaint: str) -> None:
    status, text = order(tmp_path, *runs)
    assert status == 2
    assert complaint in text
