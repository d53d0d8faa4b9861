"""Writes ``docs/compatibility.md``: everything of the original's API, and what becomes of it here.

``python -m llmdd.dropin.compatibility``, run in ``docs``, writes the page; with ``--check`` it fails if the page is not
what it would write. Every fact on it is first held against llmdd as it is installed: names, parameters and their
defaults, values, properties, what each option becomes and whether ``init`` heeds it, which codes the sources can
return, where the drop-in package has its names; and that whatever is said to be better has a test of that. Whatever
does not agree is named, and no page is written.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import llmdd
from llmdd._core import tables
from llmdd.dropin import install, original
from llmdd.dropin.original import CONFIG, DATADIST, MANAGER, OPTIONS, VALUES, Class, Member
from llmdd.options import EngineOptions

COMMAND = "python -m llmdd.dropin.compatibility"
CLASSES = (DATADIST, MANAGER, CONFIG, *VALUES)
SOURCES = Path(llmdd.__file__).parent


class Tests:
    """The tests of a folder, by their names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where: dict[str, Path] = {}
        for path in sorted(folder.rglob("test_*.py")):
            for name in re.findall(r"^ *(?:async )?def test_(\w+)\(", path.read_text(), re.MULTILINE):
                self._where.setdefault(name, path.relative_to(folder))

    def find(self, pattern: str) -> list[str]:
        """The names that a pattern stands for."""
        if not pattern.endswith("*"):
            return [pattern] if pattern in self._where else []
        return [name for name in self._where if name.startswith(pattern[:-1])]

    def links(self, patterns: Iterable[str]) -> str:
        """To each test, under its name in words."""
        names = [name for pattern in patterns for name in self.find(pattern)]
        return ", ".join(f"[{self._in_words(name)}](../tests/{self._where[name].as_posix()})" for name in names)

    @staticmethod
    def _in_words(name: str) -> str:
        return re.sub(r"^d?\d+_", "", name).replace("_", " ")


# -------------------------------------------------------------------- is it so?


def _claims(tests: Tests) -> Iterator[str]:
    better = {"from llmdd import *", *(each.name for each in CLASSES if each.verdict == original.BETTER)}
    for each in CLASSES:
        better |= {f"{each.name}.{member.name}" for member in each.members if member.verdict == original.BETTER}
    yield from (f"{name} is said to be better, and no test is named" for name in sorted(better - set(original.HELD_BY)))
    yield from (f"{name} has tests, and is not said to be better" for name in sorted(set(original.HELD_BY) - better))
    for name, patterns in original.HELD_BY.items():
        yield from (f"{name}: there is no test {pattern}" for pattern in patterns if not tests.find(pattern))


def disagreements(tests: Tests) -> Iterator[str]:
    """Everything in which the table of the original's API and llmdd do not agree."""
    yield from _claims(tests)
    yield from _names()
    for described in CLASSES:
        yield from _class(described)
    yield from _options()
    yield from _enumerations()
    yield from _codes()
    yield from _import_paths()


def _names() -> Iterator[str]:
    if tuple(llmdd.v2_list) != original.EXPORTED or llmdd.__all__ is not llmdd.v2_list:
        yield f"v2_list is {llmdd.v2_list}"
    for name in original.EXPORTED:
        if not hasattr(llmdd, name):
            yield f"{name} is missing"
    for name in original.OF_THE_OLDER_API:
        try:
            getattr(llmdd, name)
        except ImportError:
            continue
        yield f"{name} is no ImportError"
    described = {each.name for each in CLASSES} | set(original.ENUMERATIONS) | {"LLMStatusCode", "LlmConfig"}
    for name in sorted(set(original.EXPORTED) - described):
        yield f"{name} is exported and not described"


def _class(described: Class) -> Iterator[str]:
    found = getattr(llmdd, described.name)
    if described.parameters is not None:
        yield from _constructor(described, found)
    options = [option.name for option in OPTIONS] if described is CONFIG else []
    known = {member.name for member in described.members} | set(options)
    for member in described.members:
        yield from (f"{described.name}.{member.name} {complaint}" for complaint in _member(member, found))
    for name in options:
        if not isinstance(inspect.getattr_static(found, name, None), property):
            yield f"{described.name}.{name} is no property"
    known |= set(original.ADDITIONS.get(described.name, ()))
    known |= original.INTERNAL.get(described.name, frozenset())
    base = set(dir(RuntimeError)) if issubclass(found, RuntimeError) else set()
    public = {name for name in dir(found) if not name.startswith("_")} - base
    yield from (f"{described.name}.{name} is not described" for name in sorted(public - known))
    yield from (f"{described.name}.{name} is described and does not exist" for name in sorted(known - public))


def _member(member: Member, owner: type) -> Iterator[str]:
    found = inspect.getattr_static(owner, member.name, None)
    if found is None and member.name not in vars(owner):
        return  # named by the caller
    if member.parameters is not None:
        bound = isinstance(found, staticmethod | classmethod)
        ours = original.ADDITIONS.get(f"{owner.__name__}.{member.name}", {})
        parameters = shown_parameters(getattr(owner, member.name), bound, ours)
        if parameters != member.parameters:
            yield f"takes ({parameters}), not ({member.parameters})"
    elif callable(found) and not isinstance(found, property):
        yield "is a method"
    elif isinstance(found, property) and (found.fset is not None) != member.settable:
        yield "can be set" if found.fset is not None else "cannot be set"


def shown_parameters(call: Any, bound: bool, ours: Container[str] = ()) -> str:
    """The parameters as a definition has them, without ``self``, types, and those that only llmdd has, by keyword."""
    shown = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(call).parameters.values()
        if parameter.name not in ours or parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    return ", ".join(_shown_parameter(parameter) for parameter in (shown if bound else shown[1:]))


def _shown_parameter(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return str(parameter)
    return (
        f"{parameter.name}={parameter.default if not isinstance(parameter.default, str) else repr(parameter.default)}"
    )


def _constructor(described: Class, found: type) -> Iterator[str]:
    """By looking into it, or where Python cannot, by trying."""
    assert described.parameters is not None
    if not described.sample:
        parameters = shown_parameters(found, bound=True)
        if parameters != described.parameters:
            yield f"{described.name} takes ({parameters}), not ({described.parameters})"
        return
    names = vars(llmdd)
    wanted = [part.split("=") for part in described.parameters.split(", ")]
    values = [eval(text, dict(names)) for text in described.sample]
    attributes = {name: dict(described.attributes).get(name, name) for name, *_ in wanted}
    required = sum(len(part) == 1 for part in wanted)

    def check(made: Any, expected: Iterable[Any], how: str) -> Iterator[str]:
        for (name, *_), value in zip(wanted, expected, strict=True):
            if getattr(made, attributes[name]) != value:
                yield f"{described.name} {how} has {name} {getattr(made, attributes[name])!r}, not {value!r}"

    defaults = [eval(default, dict(names)) for _, *rest in wanted for default in rest]
    yield from check(found(*values), values, "by position")
    yield from check(
        found(**{name: value for (name, *_), value in zip(wanted, values, strict=True)}), values, "by name"
    )
    yield from check(found(*values[:required]), [*values[:required], *defaults], "with defaults")
    for count in (required - 1, len(values) + 1):
        try:
            found(*[*values, 0][:count])
        except (TypeError, llmdd.LLMException):
            continue
        yield f"{described.name} takes {count} arguments"


def _options() -> Iterator[str]:
    unset = llmdd.LLMConfig()
    always = unset.generate_options()
    properties = [name for name, each in vars(llmdd.LlmConfig).items() if isinstance(each, property)]
    own = original.ADDITIONS.get(CONFIG.name, {})
    if sorted(properties) != sorted([*(option.name for option in OPTIONS), *own, "options"]):
        yield f"the properties of LLMConfig are {properties}"
    for option in OPTIONS:
        config = llmdd.LLMConfig()
        if getattr(config, option.name) != option.unset:
            yield f"{option.name} is {getattr(config, option.name)!r} when unset, not {option.unset!r}"
        setattr(config, option.name, option.value)
        changed = {key for key, value in config.generate_options().items() if always.get(key) != value}
        if changed != set(option.keys):
            yield f"{option.name} becomes {sorted(changed)}, not {sorted(option.keys)}"
        if _is_effective(config) != option.effective:
            yield f"init {'does not heed' if option.effective else 'heeds'} {option.name}"


def _is_effective(config: llmdd.LLMConfig) -> bool:
    """Whether an instance comes out otherwise because of what is set."""
    base = {"llm.EnableCacheManager": "1", "llm.listenIpInfo": "127.0.0.1:0"}
    try:
        return asdict(EngineOptions.parse(base | config.generate_options())) != asdict(EngineOptions.parse(base))
    except llmdd.LLMException:
        return True


def _enumerations() -> Iterator[str]:
    codes = {name: value for name, (value, _) in original.CODES.items()}
    for name, members in {**original.ENUMERATIONS, "LLMStatusCode": codes}.items():
        found = {member.name: member.value for member in getattr(llmdd, name)}
        if found != members:
            yield f"{name} is {found}, not {members}"


def _codes() -> Iterator[str]:
    """Whether the sources and the machines name the codes that can be returned, and no other."""
    named = set(_codes_of_the_machines())
    for path in sorted([*SOURCES.rglob("*.py"), *SOURCES.rglob("*.pyx")]):
        if path.name != "status.py" and not {"dropin", "spec", "demo", "cli"} & set(path.relative_to(SOURCES).parts):
            named |= set(re.findall(r"\bLLMStatusCode\.(LLM_\w+)", path.read_text()))
    for name, (_, when) in original.CODES.items():
        if (name in named) != (when is not None):
            yield f"{name} is {'' if name in named else 'not '}named in the sources"


def _codes_of_the_machines() -> Iterator[str]:
    for machine in (tables.CACHE, tables.BATCH_SLOT, tables.LINK, tables.COMMUNICATOR, tables.ENGINE):
        facts = [
            dict(zip(machine.guards, each, strict=True)) for each in product((False, True), repeat=len(machine.guards))
        ]
        for state, event, stated in product(machine.states, machine.events, facts):
            try:
                machine.step(state, event, **stated)
            except llmdd.LLMException as refused:
                yield refused.status_code.name
            except RuntimeError:  # it cannot occur, or is refused without a code
                continue


def _import_paths() -> Iterator[str]:
    if not install():
        yield "another llm_datadist is installed: the import paths cannot be looked at"
        return
    for path, names in original.IMPORT_PATHS.items():
        try:
            module = importlib.import_module(path)
        except (ImportError, AttributeError) as error:
            yield f"{path} cannot be imported: {error}"
            continue
        for name in names:
            ours = getattr(llmdd, name, None)
            if not hasattr(module, name) or (ours is not None and getattr(module, name) is not ours):
                yield f"{path}.{name} is not llmdd's"


# -------------------------------------------------------------------- the page


def page(tests: Tests) -> str:
    """The whole page."""
    lines = [
        f"*Generated by `{COMMAND}`, run in `docs`. Change `llmdd/dropin/original.py`, not this page.*",
        "",
        "# Compatibility with LLM-DataDist",
        "",
        "Everything of the API of LLM-DataDist in CacheManager mode, and what becomes of it in `llmdd`: **same**; "
        "**better**, where the original contradicts its documentation, loses data or leaks; **no effect here**, "
        "where it only means something to one vendor's hardware: checked as in the original, and kept. A program "
        "that does not rely on a defect runs unchanged. Beside whatever is better stand the tests that hold it.",
        "",
        "```sh",
        "python -m llmdd.dropin script.py arguments   # a script that says: from llm_datadist import ...",
        "```",
        "",
        "or, in a program, `llmdd.dropin.install()` before the first import. Both leave an `llm_datadist` that is "
        "really installed alone unless told otherwise (`--replace`, `replace=True`). Processes that "
        "`multiprocessing` starts, by whatever method, find the package too; a program that is started in another "
        "way must be started so itself.",
        "",
        "## Names",
        "",
        f"`from llm_datadist import *`, or `from llmdd import *`, gives {_listed(original.EXPORTED)}. (The original's "
        "own star import fails unless its older API is installed.) The list is the attribute `v2_list`. Of the older "
        f"API, {_listed(original.OF_THE_OLDER_API)} are an ImportError. "
        f"Tests: {tests.links(original.HELD_BY['from llmdd import *'])}.",
        "",
    ]
    for described in (DATADIST, MANAGER):
        lines += _section(described, tests)
    lines += _option_section(tests)
    lines += ["## Values", ""]
    for described in VALUES:
        lines += _section(described, tests, "###")
    lines += _enumeration_section()
    lines += _code_section()
    lines += _import_section()
    lines += _addition_section()
    return "\n".join(lines)


def _section(described: Class, tests: Tests, mark: str = "##") -> list[str]:
    title = described.name if described.parameters is None else f"{described.name}({described.parameters})"
    links = tests.links(original.HELD_BY.get(described.name, ()))
    summary = f"**{described.verdict}**. {described.words}".strip()
    lines = [f"{mark} `{title}`", "", f"{summary} Tests: {links}." if links else summary, ""]
    rows = [
        [
            f"`{member.name}`{_call(member)}",
            member.verdict,
            member.words,
            tests.links(original.HELD_BY.get(f"{described.name}.{member.name}", ())),
        ]
        for member in described.members
    ]
    if any(row[-1] for row in rows):
        return lines + _table(["member", "", "here", "tests"], rows)
    return lines + _table(["member", "", "here"], [row[:-1] for row in rows])


def _call(member: Member) -> str:
    if member.parameters is None:
        return ", can be set" if member.settable else ""
    return f" `({member.parameters})`"


def _option_section(tests: Tests) -> list[str]:
    rows = [
        [
            f"`{option.name}`",
            ", ".join(f"`{key}`" for key in option.keys) if option.name != "ge_options" else "as given",
            f"`{option.unset!r}`",
            f"{'same' if option.effective else original.NO_EFFECT}. {option.words}".strip(" "),
        ]
        for option in OPTIONS
    ]
    lines = _section(CONFIG, tests)
    return [
        *lines,
        "The properties, the keys of `generate_options()` that they become, and what they do here. All are checked "
        "as in the original, by their setters and again by `init`.",
        "",
        *_table(["property", "option key", "unset", "here"], rows),
    ]


def _enumeration_section() -> list[str]:
    rows = [
        [f"`{name}`", ", ".join(f"`{member}` {value}" for member, value in members.items()),
         f"same. {original.ENUMERATION_WORDS[name]}".strip()]
        for name, members in original.ENUMERATIONS.items()
    ]  # fmt: skip
    return ["## Enumerations", "", *_table(["name", "members", "here"], rows)]


def _code_section() -> list[str]:
    rows = [
        [f"`{name}`", str(value), "never" if when is None else when] for name, (value, when) in original.CODES.items()
    ]
    return ["## `LLMStatusCode`", "", "The values are the original's.", "", *_table(["code", "value", "here"], rows)]


def _import_section() -> list[str]:
    rows = [
        [f"`{path}`", "the names above" if names == original.EXPORTED else _listed(names)]
        for path, names in original.IMPORT_PATHS.items()
    ]
    return [
        "## Import paths",
        "",
        "Offered by `llmdd.dropin`, with the same objects. The log of `llm_datadist.utils.log`, logger "
        "`LLM_DATADIST`, goes to standard output from the level on that the environment variable "
        "`ASCEND_GLOBAL_LOG_LEVEL` names (0 debug, 1 info, 2 warning, 3 error, which is the default); llmdd's own "
        "messages then go there too, unless the program has given the logger `llmdd` handlers of its own.",
        "",
        *_table(["path", "names"], rows),
    ]


def _addition_section() -> list[str]:
    rows = [
        [f"`{owner}.{name}`", words]
        for owner, additions in original.ADDITIONS.items()
        for name, words in additions.items()
    ]
    return ["## Beyond the original", "", *_table(["name", ""], rows)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(cell.strip().replace("|", r"\|") for cell in line) + " |" for line in lines), ""]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or with ``--check`` exit with status 1 if it is not as it would be written."""
    parser = argparse.ArgumentParser(prog="llmdd.dropin.compatibility", description="write the compatibility page")
    parser.add_argument("--output", type=Path, default=Path("compatibility.md"), metavar="FILE")
    parser.add_argument("--tests", type=Path, default=Path("../tests"), metavar="FOLDER", help="llmdd's tests")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page differs")
    options = parser.parse_args(argv)
    tests = Tests(options.tests)
    complaints = list(disagreements(tests))
    if complaints:
        sys.exit("\n".join(["llmdd is not what llmdd/dropin/original.py says:", *complaints]))
    written = page(tests)
    if not options.check:
        options.output.write_text(written)
    elif not options.output.exists() or options.output.read_text() != written:
        sys.exit(f"{options.output} is not what llmdd gives: run `{COMMAND}` in `docs` and commit what it writes")


if __name__ == "__main__":
    main()
