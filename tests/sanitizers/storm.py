"""One run of the stress, in a process that a sanitizer is loaded into: started by ``python tests/sanitizers``."""

from __future__ import annotations

import argparse
from collections import Counter

import stress

LARGE = 6 << 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--operations", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=stress.FAULTS, default="none")
    arguments = parser.parse_args()
    done: Counter[str] = Counter()
    for number in range(arguments.rounds):
        storm = stress.Storm(arguments.seed + number, arguments.operations, stress.FAULTS[arguments.fault])
        done += Counter(storm.run())
        storm.check()
    stress.copy_much(LARGE, 4)
    print(", ".join(f"{name} {times}" for name, times in done.items()))
    # To be evicted in the middle of a transfer takes luck.
    never = [name for name in stress.DEED_NAMES if not done[name] and name != "lost its link"]
    if arguments.fault == "none" and never:
        raise AssertionError(f"it was no storm of everything: never {', '.join(never)}")


main()
