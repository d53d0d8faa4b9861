"""What the terminal shows of a run."""

from __future__ import annotations

import io

import made_up_results as made_up
import pytest
from llmdd.bench import summary
from llmdd.bench.command import LEAST_WIDTH
from llmdd.bench.durations import duration, rate, size, spread, times
from llmdd.bench.results import Run
from rich.console import Console


def shown(run: Run, width: int = LEAST_WIDTH) -> str:
    output = io.StringIO()
    summary.show(Console(file=output, width=width), run)
    return output.getvalue()


def line_of(text: str, case: str, entrant: str) -> list[str]:
    """The cells of an entrant's line."""
    below = text.partition(f"\n{case}  ")[2]
    [line, *_] = [line for line in below.splitlines() if line.startswith(f"  {entrant} ")]
    return line.removeprefix(f"  {entrant}").split()


def test_every_entrant_has_a_line() -> None:
    text = shown(made_up.usual())
    llmdd = line_of(text, "lookup/10-live", "llmdd")
    assert " ".join(llmdd) == "120 ns 114-126 ns 0.30x (0.27x-0.33x) 3 MiB / 5 MiB yes"
    dictionaries = line_of(text, "lookup/10-live", "dictionaries")
    assert " ".join(dictionaries) == "400 ns 380-420 ns baseline 3 MiB / 5 MiB yes"
    assert line_of(text, "pull/1MiB", "llmdd")[4:8] == ["0.93x", "(0.84x-1.03x)", "7.49", "GB/s"]


def test_who_was_wrong_has_no_figure_and_the_reason_below() -> None:
    text = shown(made_up.usual())
    assert line_of(text, "gil/4KiB", "Mooncake") == ["-"] * 6 + ["no"]
    assert "Mooncake is incorrect in gil/4KiB: byte 7 [of 4096] is wrong" in text


def test_who_was_skipped_is_named_once() -> None:
    text = shown(made_up.usual())
    assert text.count("NIXL") == 3
    assert "NIXL skipped in pull/4KiB, pull/1MiB: NIXL is not installed: pip install NIXL" in text


def test_an_interrupted_run_says_so() -> None:
    assert "Interrupted" in shown(made_up.run(interrupted=True))
    assert "Interrupted" not in shown(made_up.usual())


def test_a_target_is_shown_as_met_or_missed() -> None:
    run = made_up.usual()
    run.cases[0].target_met = False
    text = shown(run)
    assert "lookup/10-live  Do what lookup/10-live does, target ≤ 2x: missed" in text
    assert "pull/4KiB  Do what pull/4KiB does, target ≤ 2x: met" in text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0.5, "0.5 ns"), (123.4, "123 ns"), (1000, "1 µs"), (1234, "1.23 µs"), (2.5e6, "2.5 ms"), (5e12, "5,000 s")],
)
def test_durations(nanoseconds: float, text: str) -> None:
    assert duration(nanoseconds) == text


def test_spreads_have_their_unit_once_where_it_is_the_same() -> None:
    assert spread(1060, 1100) == "1.06-1.1 µs"
    assert spread(950, 1100) == "950 ns-1.1 µs"


def test_sizes_rates_and_ratios() -> None:
    assert [size(4096), size(3 << 30), size(12)] == ["4 KiB", "3 GiB", "12 B"]
    assert [rate(12.345), rate(1234.5)] == ["12.3 GB/s", "1,234 GB/s"]
    assert [rate(0.0321), rate(0.0000976)] == ["32.1 MB/s", "97.6 kB/s"]
    assert [times(0.5), times(12.34), times(12345)] == ["0.50x", "12.3x", "12,345x"]
