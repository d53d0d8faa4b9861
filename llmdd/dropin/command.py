"""Runs another program in this one's place, with its own ``__main__``, ``sys.argv``, ``sys.path[0]`` and tracebacks."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import CodeType, ModuleType, TracebackType
from typing import NoReturn

from llmdd.dropin import NAME, install, installed

USAGE = f"""\
usage: python -m llmdd.dropin [--replace] script.py [arguments]
       python -m llmdd.dropin [--replace] -m module [arguments]
       python -m llmdd.dropin [--replace] -c code [arguments]
       python -m llmdd.dropin [--replace] - [arguments]

Run a program that says "from {NAME} import ..." against llmdd. Everything else is as python itself has it.

  --replace  also where another {NAME} is installed, which is left alone otherwise
  --help     show this and exit"""


@dataclass(frozen=True)
class Program:
    """What python is asked to run.

    ``path_entry`` belongs into ``sys.path[0]``, None for what stands there already. ``load`` gives the code, and what
    the module ``__main__`` has to say about itself; it may import, so ``sys`` must be set up by then.
    """

    argv: list[str]
    path_entry: str | None
    load: Callable[[], tuple[CodeType, dict[str, object]]]


def main(arguments: Sequence[str]) -> None:
    """Run what the arguments name, and come back when it has ended."""
    remaining = list(arguments)
    replace = False
    while remaining and remaining[0] in ("--replace", "--help", "-h"):
        if remaining.pop(0) != "--replace":
            print(USAGE)
            return
        replace = True
    run(_program(remaining), replace)


def run(program: Program, replace: bool = False) -> None:
    """Run a program as ``__main__``. What it raises is shown with a traceback that begins in the program."""
    sys.argv[:] = program.argv
    if program.path_entry is not None and not _path_is_safe():
        sys.path[0] = program.path_entry
    if not install(replace):
        other = installed()
        print(f"{NAME} at {other and other.origin} is left alone; --replace runs against llmdd", file=sys.stderr)
    code = None
    module = ModuleType("__main__")
    try:
        code, attributes = program.load()
        module.__dict__.update(attributes, __builtins__=sys.modules["builtins"])
        sys.modules["__main__"] = module
        exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        _show_from(error, code)
        raise


def _show_from(error: BaseException, code: CodeType | None) -> None:
    """Let the interpreter, which will get the exception from us, show it as if it had run the program itself."""
    hook = sys.excepthook
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next

    def show(kind: type[BaseException], value: BaseException, whole: TracebackType | None) -> None:
        if value is error:
            whole = value.__traceback__ = traceback
        hook(kind, value, whole)

    sys.excepthook = show


def _path_is_safe() -> bool:
    """Whether python was told to put nothing of the program's into ``sys.path``."""
    return bool(sys.flags.isolated or getattr(sys.flags, "safe_path", False))


def _program(arguments: list[str]) -> Program:
    if not arguments:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    first, *rest = arguments
    if first in ("-m", "-c"):
        if not rest:
            _refuse(f"Argument expected for the {first} option\n{USAGE}")
        return _module(rest[0], rest[1:]) if first == "-m" else _text(rest[0], "<string>", [first, *rest[1:]])
    if first == "-":
        return _text(None, "<stdin>", arguments)
    if first.startswith("-"):
        _refuse(f"unknown option {first}\n{USAGE}")
    whole = os.path.join(os.getcwd(), first)
    spec = PathFinder.find_spec("__main__", [whole])
    if spec is not None:  # a folder or an archive with a __main__.py
        return Program(arguments, whole, partial(_load_from, spec))
    return _script(first, arguments)


def _script(name: str, argv: list[str]) -> Program:
    path = os.path.join(os.getcwd(), name)  # not normalised: as python gives it

    def load() -> tuple[CodeType, dict[str, object]]:
        try:
            with io.open_code(path) as file:
                source = file.read()
        except OSError as error:
            _refuse(f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}")
        loader = SourceFileLoader("__main__", path)
        attributes: dict[str, object] = {"__file__": path, "__cached__": None, "__loader__": loader}
        return compile(source, path, "exec", dont_inherit=True), attributes

    return Program(argv, os.path.dirname(os.path.realpath(name)), load)


def _text(source: str | None, name: str, argv: list[str]) -> Program:
    def load() -> tuple[CodeType, dict[str, object]]:
        text = sys.stdin.read() if source is None else source
        return compile(text, name, "exec", dont_inherit=True), {} if source is not None else {"__file__": name}

    return Program(argv, "", load)


def _module(name: str, rest: list[str]) -> Program:
    def load() -> tuple[CodeType, dict[str, object]]:
        try:
            spec = find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = find_spec(f"{name}.__main__")
        except (ImportError, ValueError) as error:
            _refuse(f"Error while finding module specification for {name!r} ({type(error).__name__}: {error})", 1)
        if spec is None:
            _refuse(f"No module named {name}", 1)
        return _load_from(spec)

    return Program(["-m", *rest], None, load)


def _load_from(spec: ModuleSpec) -> tuple[CodeType, dict[str, object]]:
    """The code of a module that the import system has found; as ``python -m`` it gives ``sys.argv`` its name."""
    get_code = getattr(spec.loader, "get_code", None)
    code = None if get_code is None else get_code(spec.name)
    if code is None:
        _refuse(f"No code object available for {spec.name}", 1)
    if sys.argv[0] == "-m":
        sys.argv[0] = str(spec.origin)
    return code, {
        "__file__": spec.origin,
        "__cached__": spec.cached,
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__spec__": spec,
    }


def _refuse(message: str, status: int = 2) -> NoReturn:
    print(f"{sys.executable} -m llmdd.dropin: {message}", file=sys.stderr)
    sys.exit(status)
