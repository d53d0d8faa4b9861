"""Builds the core under gcc's sanitizers and stresses it: ``python tests/sanitizers``.

For ThreadSanitizer, and for AddressSanitizer with UndefinedBehaviorSanitizer: build what the stress (``stress.pyx``)
drives, let it storm, and let it do on purpose each thing that the sanitizer is there to find. A fault that is not
reported is as much an error as a report without a fault. The second build is of the whole core, and runs some of its
Python tests too.

The interpreter is not instrumented: the sanitizer's library is loaded before everything else, and is told to look only
at what was built for it. The interpreter is the one below a virtual environment, where no other llmdd is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
BUILDS = REPOSITORY / "build" / "sanitizers"

# Tests of the core in one process. The others start processes, or wait for Python more than for the core.
PYTHON_TESTS = (
    "test_attach.py",
    "test_deceptive_sequences.py",
    "test_hostile_owner.py",
    "test_key_index.py",
    "test_page_pool.py",
    "test_registered.py",
)


@dataclass(frozen=True)
class Sanitizers:
    """Sanitizers that can be built together."""

    name: str
    b_sanitize: str
    library: str
    environment: dict[str, str]
    rounds: int
    operations: int
    faults: dict[str, str] = field(hash=False)
    """What the stress can do wrong on purpose, and what the report then says."""
    optimization: int = 1
    whole_core: bool = False


ALL = (
    Sanitizers(
        "thread",
        "thread",
        "libtsan.so",
        {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1 history_size=7 exitcode=66"},
        rounds=6,
        operations=3000,
        faults={
            "plain reference": "WARNING: ThreadSanitizer: data race",
            "read on": "WARNING: ThreadSanitizer: data race",
        },
    ),
    Sanitizers(
        "address",
        "address,undefined",
        "libasan.so",
        {
            # The interpreter does not free what it has at its end.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1 print_stacktrace=1",
            # So that every object of Python's is a piece of memory by itself.
            "PYTHONMALLOC": "malloc",
        },
        rounds=6,
        operations=10000,
        faults={
            # Poisoned bytes. The report says "unknown" where another thread has been given them before it looks why.
            "read on": "ERROR: AddressSanitizer: ",
            "fill too far": "ERROR: AddressSanitizer: ",
            "shift too far": "runtime error: shift exponent 32 is too large",
        },
        # Of the whole core most is called too seldom to be worth what its optimization takes.
        optimization=0,
        whole_core=True,
    ),
)


def say(text: str) -> None:
    print(f"\n-- {text}", flush=True)


def tool(name: str) -> str:
    """A program of the environment that runs this."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise SystemExit(f"{name} is not installed; .venv/bin/pip install '.[test]' installs it")
    return found


def build(sanitizers: Sanitizers) -> Path:
    """Compile, and lay out below one folder what is then imported: `stress`, and the modules of `llmdd._core`."""
    folder = BUILDS / sanitizers.name
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    options = [
        "-Dstress=true",
        f"-Db_sanitize={sanitizers.b_sanitize}",
        "-Db_lundef=false",
        f"-Doptimization={sanitizers.optimization}",
        "-Ddebug=true",
        "-Dprefix=/",
        "-Dpython.platlibdir=/",
        "-Dpython.purelibdir=/",
    ]
    if not (folder / "build.ninja").exists():
        setup = [tool("meson"), "setup", str(folder), str(REPOSITORY), *options]
        subprocess.run(setup, check=True, env=environment, stdout=subprocess.DEVNULL)
    targets = [] if sanitizers.whole_core else ["stressed"]
    compiled = subprocess.run(
        [tool("ninja"), "-C", str(folder), *targets], env=environment, capture_output=True, text=True
    )
    if compiled.returncode:
        raise SystemExit(compiled.stdout + compiled.stderr)
    modules = folder / "modules"
    shutil.rmtree(modules, ignore_errors=True)
    core = modules / "llmdd" / "_core"
    core.mkdir(parents=True)
    for package in (core.parent, core):
        (package / "__init__.py").touch()
    for module in (folder / "llmdd").glob("*.so"):
        (core / module.name).symlink_to(module)
    for module in (folder / "tests" / "sanitizers").glob("*.so"):
        (modules / module.name).symlink_to(module)
    return folder


def not_randomized() -> list[str]:
    """What a command begins with that is to have its memory where it always is, if the kernel allows it.

    Some kernels scatter mappings more widely than the ThreadSanitizer of gcc 12 can follow.
    """
    prefix = ["setarch", "--addr-no-randomize"]
    tried = subprocess.run([*prefix, "true"], capture_output=True) if shutil.which("setarch") else None
    return prefix if tried is not None and tried.returncode == 0 else []


def run(
    sanitizers: Sanitizers, path: list[Path], command: list[str], capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizer loaded and these folders to import from."""
    library = subprocess.run(
        [tool("gcc"), f"-print-file-name={sanitizers.library}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # Where nothing else is installed, and no .pth file is read: what is imported is what was built here.
    interpreter: str = getattr(sys, "_base_executable", sys.executable)
    return subprocess.run(
        [*not_randomized(), "env", f"LD_PRELOAD={library}", interpreter, *command],
        cwd="/",
        env={**os.environ, **sanitizers.environment, "PYTHONPATH": os.pathsep.join(map(str, path))},
        text=True,
        capture_output=capture,
    )


def storm(sanitizers: Sanitizers, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(HERE / "storm.py"), f"--operations={sanitizers.operations}", *arguments]
    return run(sanitizers, [folder / "modules"], command, capture=True)


def stress(sanitizers: Sanitizers, folder: Path, seed: int) -> None:
    """The storm is clean, and each fault is found."""
    say(f"{sanitizers.b_sanitize}: {sanitizers.rounds} rounds from seed {seed}")
    done = storm(sanitizers, folder, f"--rounds={sanitizers.rounds}", f"--seed={seed}")
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"the storm of seed {seed} ended with {done.returncode}")
    for fault, report in sanitizers.faults.items():
        say(f"{sanitizers.b_sanitize}: {fault}, on purpose")
        done = storm(sanitizers, folder, f"--rounds={sanitizers.rounds}", f"--fault={fault}")
        if done.returncode == 0 or report not in done.stderr:
            print(done.stdout, done.stderr, flush=True)
            raise SystemExit(f"the sanitizer did not find the fault: it ended with {done.returncode}")
        print(next(line for line in done.stderr.splitlines() if report in line), flush=True)


def test(sanitizers: Sanitizers, folder: Path) -> None:
    """Tests of the core that are written in Python."""
    say(f"{sanitizers.b_sanitize}: tests of the core")
    installed = folder / "installed"
    shutil.rmtree(installed, ignore_errors=True)
    subprocess.run(
        [tool("meson"), "install", "-C", str(folder), "--no-rebuild", "--quiet", "--destdir", str(installed)],
        check=True,
    )
    tests = [str(REPOSITORY / "tests" / "core" / name) for name in PYTHON_TESTS]
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(REPOSITORY),
        "-c",
        str(REPOSITORY / "pyproject.toml"),
    ]
    path = [installed, Path(sysconfig.get_path("platlib")), Path(sysconfig.get_path("purelib"))]
    if run(sanitizers, path, ["-m", "pytest", *options, *tests]).returncode:
        raise SystemExit("tests of the core failed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/sanitizers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[sanitizers.name for sanitizers in ALL], help="one of the two builds")
    parser.add_argument("--seed", type=int, default=0, help="of the storms; the threads' order is nobody's choice")
    arguments = parser.parse_args()
    for sanitizers in ALL:
        if arguments.only in (None, sanitizers.name):
            folder = build(sanitizers)
            stress(sanitizers, folder, arguments.seed)
            if sanitizers.whole_core:
                test(sanitizers, folder)


main()
