"""Feeds the decoders, and a live node, what a stranger might say: ``python tests/fuzz --seconds 60 --seed 1``.

Two targets, one after the other, each for half of the time: every decoder of what comes from a peer (``decoders.py``),
and a node with healthy peers that is attacked (``attacks.py``). An input is bytes, from which everything else is
drawn; so what was found once can be kept, and tried again: ``python tests/fuzz FILE``. What is kept in ``corpus/``
begins with the name of its target, and is tried by the tests.

With atheris (``pip install atheris``) the search is guided by which lines of ``llmdd.link``, ``llmdd.transport`` and
``llmdd.demo.messages`` an input reaches. The compiled core and msgspec, which decodes, are not instrumented. Without
atheris inputs are drawn at random.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
FOUND = HERE.parent.parent / "build" / "fuzz"
sys.path[:0] = [str(HERE), str(HERE.parent / "transport")]

TARGETS = ("decoder", "server")
LONGEST_INPUT = 400

#: How much more memory the process may have in the end than when it has been warm.
MAX_GROWTH = 64 << 20

#: So many inputs make it warm.
WARM = 200

HAS_ATHERIS = importlib.util.find_spec("atheris") is not None

Target = Callable[[bytes], None]


@contextmanager
def opened(name: str) -> Iterator[Target]:
    """A target: raises where an input has done harm."""
    # Imported here, so that they come after what instruments them.
    from decoders import decode_anything

    if name == "decoder":
        yield decode_anything
        return
    from attacks import siege

    with siege() as attack:
        yield attack


class Search:
    """Tries inputs on a target until the time is up."""

    def __init__(self, name: str, target: Target, seconds: float, seed: int) -> None:
        self._name = name
        self._target = target
        self._seconds = seconds
        self._seed = seed
        self._tried = 0
        self._warm_bytes = 0

    def run(self) -> None:
        """Without a guide. Raises on the first harm, whose input is kept."""
        chance = random.Random(f"{self._name} {self._seed}")
        inputs = [path.read_bytes() for path in kept(self._name)]
        ends = time.monotonic() + self._seconds
        while time.monotonic() < ends:
            if inputs and chance.random() < 0.3:
                data = bytearray(chance.choice(inputs))
                for _ in range(chance.randrange(1, 4)):
                    if data:
                        data[chance.randrange(len(data))] = chance.randrange(256)
            else:
                data = bytearray(chance.randbytes(chance.choice([10, 40, 100, LONGEST_INPUT])))
            self.try_one(bytes(data))
        self.end()

    def run_guided(self) -> None:
        """With atheris, which ends the process."""
        import atheris

        begun = FOUND / f"{self._name}-corpus"
        begun.mkdir(parents=True, exist_ok=True)
        for path in kept(self._name):
            (begun / path.name).write_bytes(path.read_bytes())
        options = [
            f"-max_total_time={round(self._seconds)}",
            f"-seed={self._seed}",
            f"-max_len={LONGEST_INPUT}",
            f"-artifact_prefix={FOUND}/{self._name}-",
            "-timeout=60",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            "-verbosity=0",
            str(begun),
        ]
        atheris.Setup([sys.argv[0], *options], self.try_one)
        atheris.Fuzz()

    def try_one(self, data: bytes) -> None:
        """Try one input."""
        self._tried += 1
        if self._tried == WARM:
            self._warm_bytes = resident_bytes()
        try:
            self._target(data)
        except BaseException:
            FOUND.mkdir(parents=True, exist_ok=True)
            path = FOUND / f"{self._name}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
            path.write_bytes(data)
            print(
                f"\n{self._name}: after {self._tried} inputs, of seed {self._seed}. Again by: python tests/fuzz {path}"
            )
            raise
        if self._tried > WARM and self._tried % WARM == 0:
            self._require_no_growth()

    def _require_no_growth(self) -> None:
        grown = resident_bytes() - self._warm_bytes
        assert grown < MAX_GROWTH, f"{grown} bytes more than after {WARM} inputs"

    def end(self) -> None:
        print(f"{self._name}: {self._tried} inputs of seed {self._seed} did no harm", flush=True)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kept(name: str) -> list[Path]:
    """The inputs for a target that were found, or are of interest."""
    return sorted(CORPUS.glob(f"{name}-*"))


def search(name: str, seconds: float, seed: int) -> None:
    """Search with one target, in a process of its own."""
    if not HAS_ATHERIS:
        with opened(name) as target:
            Search(name, target, seconds, seed).run()
        return
    import atheris

    instrumented = atheris.instrument_imports(include=["llmdd.link", "llmdd.transport", "llmdd.demo.messages"])
    with instrumented, opened(name) as target:
        Search(name, target, seconds, seed).run_guided()


def try_again(path: Path) -> None:
    """Try one input that was kept."""
    name = next((name for name in TARGETS if path.name.startswith(name)), None)
    if name is None:
        raise SystemExit(f"the name of {path} begins with none of {TARGETS}, the targets")
    with opened(name) as target:
        target(path.read_bytes())
    print(f"{path.name} does no harm")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", nargs="*", type=Path, help="inputs to be tried again, instead of a search")
    parser.add_argument("--seconds", type=float, default=60.0, help="for both targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the search; another one each time otherwise")
    parser.add_argument("--only", choices=TARGETS, help="only one target")
    parser.add_argument("--here", action="store_true", help="in this process; only with --only")
    chosen = parser.parse_args()
    if chosen.inputs:
        for path in chosen.inputs:
            try_again(path)
        return 0
    seed = random.SystemRandom().randrange(1, 2**31) if chosen.seed is None else chosen.seed
    if chosen.here:
        search(chosen.only, chosen.seconds, seed)
        return 0
    names = [chosen.only] if chosen.only else list(TARGETS)
    print(f"seed {seed}, {'guided by atheris' if HAS_ATHERIS else 'unguided: atheris is not installed'}", flush=True)
    for name in names:
        command = [sys.executable, str(HERE), "--here", f"--only={name}", f"--seed={seed}"]
        ended = subprocess.run([*command, f"--seconds={chosen.seconds / len(names)}"], cwd="/").returncode
        if ended:
            print(f"{name}: harm was done, or the search failed (exit status {ended}); its input is in {FOUND}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
