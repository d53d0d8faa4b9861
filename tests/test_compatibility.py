"""The page about compatibility is what llmdd gives, and is not written where llmdd is not as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llmdd

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"
PAGE = REPOSITORY / "docs" / "compatibility.md"


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command, in a process whose copy of the table was changed ``before``."""
    program = f"""
import sys
from dataclasses import replace
import llmdd
from llmdd.dropin import compatibility, original
{before}
compatibility.main(["--tests", {str(TESTS)!r}, *sys.argv[1:]])
"""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd="/", capture_output=True, text=True, timeout=60
    )


def test_the_committed_page_is_what_llmdd_gives() -> None:
    done = run("--check", "--output", str(PAGE))
    assert done.returncode == 0, done.stderr


def test_what_is_written_passes_the_check(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert run("--check", "--output", str(page)).returncode == 1
    assert run("--output", str(page)).returncode == 0
    assert page.read_text() == PAGE.read_text()
    assert run("--check", "--output", str(page)).returncode == 0
    page.write_text(page.read_text().replace("same", "better", 1))
    done = run("--check", "--output", str(page))
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not what llmdd gives" in done.stderr


CLASS = "next(each for each in compatibility.CLASSES if each.name == {name!r})"


def with_class(name: str, changed: str) -> str:
    """Puts another description of a class in the place of the one that is there."""
    return f"""
it = {CLASS.format(name=name)}
compatibility.CLASSES = tuple({changed} if each is it else each for each in compatibility.CLASSES)
"""


def with_member(name: str, member: str, changed: str) -> str:
    members = f"tuple(replace(m, {changed}) if m.name == {member!r} else m for m in it.members)"
    return with_class(name, f"replace(it, members={members})")


def with_option(name: str, changed: str) -> str:
    return (
        f"compatibility.OPTIONS = [replace(o, {changed}) if o.name == {name!r} else o for o in compatibility.OPTIONS]"
    )


LIES = [
    ("original.EXPORTED = original.EXPORTED[1:]", "v2_list is"),
    ("llmdd.v2_list.append('Nonsense'); original.EXPORTED += ('Nonsense',)", "Nonsense is missing"),
    ("original.OF_THE_OLDER_API += ('CacheKey',)", "CacheKey is no ImportError"),
    (
        "compatibility.CLASSES = compatibility.CLASSES[:-1]",
        "Status is exported and not described",
    ),
    (
        with_member("CacheManager", "pull_cache", "parameters='cache_key, cache, **kwargs'"),
        "CacheManager.pull_cache takes (cache_key, cache, batch_index=0, size=-1, **kwargs)",
    ),
    (
        with_member("LLMDataDist", "link_clusters", "parameters='clusters, timeout=1000'"),
        "LLMDataDist.link_clusters takes (clusters, timeout=3000)",
    ),
    (with_member("CacheManager", "copy_blocks", "parameters=None"), "CacheManager.copy_blocks is a method"),
    (with_member("MemInfo", "addr", "settable=True"), "MemInfo.addr cannot be set"),
    (with_member("TransferConfig", "dst_addrs", "settable=False"), "TransferConfig.dst_addrs can be set"),
    (
        with_member("CacheManager", "copy_blocks", "name='move_blocks'"),
        "CacheManager.copy_blocks is not described",
    ),
    (
        with_member("CacheManager", "copy_blocks", "name='move_blocks'"),
        "CacheManager.move_blocks is described and does not exist",
    ),
    (with_class("MemInfo", "replace(it, parameters='mem_type, addr')"), "MemInfo takes (mem_type, addr, size)"),
    (
        with_class("CacheKey", "replace(it, parameters='cluster_id, req_id, model_id=1, prefix_id=5')"),
        "CacheKey with defaults has model_id 0, not 1",
    ),
    (
        with_class("CacheKey", "replace(it, parameters='cluster_id, req_id, model_id', sample=it.sample[:3])"),
        "CacheKey takes 2 arguments",
    ),
    (
        with_class("CacheKeyByIdAndIndex", "replace(it, parameters='cache_id, cluster_id, batch_index=0')"),
        "CacheKeyByIdAndIndex by position has cache_id 2, not 1",
    ),
    ("del original.ADDITIONS['CacheManager']['lookup']", "CacheManager.lookup is not described"),
    ("compatibility.OPTIONS = compatibility.OPTIONS[1:]", "the properties of LLMConfig are"),
    (with_option("link_retry_count", "unset=0"), "link_retry_count is 1 when unset, not 0"),
    (with_option("device_id", "keys=('ge.exec.deviceId',)"), "device_id becomes"),
    (with_option("sync_kv_timeout", "effective=False"), "init heeds sync_kv_timeout"),
    (with_option("output_max_size", "effective=True"), "init does not heed output_max_size"),
    ("original.ENUMERATIONS['LLMRole']['MIX'] = 4", "LLMRole is"),
    ("original.CODES['LLM_TIMEOUT'] = (26, 'late')", "LLMStatusCode is"),
    (
        "original.CODES['LLM_TIMEOUT'] = (original.CODES['LLM_TIMEOUT'][0], None)",
        "LLM_TIMEOUT is named in the sources",
    ),
    (
        "original.CODES['LLM_ALREADY_LINK'] = (original.CODES['LLM_ALREADY_LINK'][0], None)",
        "LLM_ALREADY_LINK is named in the sources",
    ),
    (
        "original.CODES['LLM_REPEAT_REQUEST'] = (original.CODES['LLM_REPEAT_REQUEST'][0], 'often')",
        "LLM_REPEAT_REQUEST is not named in the sources",
    ),
    ("del original.HELD_BY['CacheTask']", "CacheTask is said to be better, and no test is named"),
    (
        with_member("CacheManager", "copy_blocks", "verdict=original.SAME"),
        "CacheManager.copy_blocks has tests, and is not said to be better",
    ),
    ("original.HELD_BY['CacheTask'] += ('d999*',)", "CacheTask: there is no test d999*"),
    ("original.HELD_BY['CacheTask'] += ('d4',)", "CacheTask: there is no test d4"),
    ("original.IMPORT_PATHS['llm_datadist.status'] += ('Code',)", "llm_datadist.status.Code is not llmdd's"),
]

#: Tells each lie in a process of its own, forked from one that has imported llmdd.
TELL_THEM_ALL = """
import json, os, sys
from dataclasses import replace
import llmdd
from llmdd.dropin import compatibility, original
tests, folder = sys.argv[1:]
for number, lie in enumerate(json.load(sys.stdin)):
    if os.fork() == 0:
        os.dup2(os.open(f"{folder}/{number}.stderr", os.O_WRONLY | os.O_CREAT), 2)
        exec(lie)
        compatibility.main(["--tests", tests, "--output", f"{folder}/{number}.md"])
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[int, str, bool]]:
    """For each of the lies the exit status, the complaint, and whether a page was written."""
    folder = tmp_path_factory.mktemp("lies")
    done = subprocess.run(
        [sys.executable, "-c", TELL_THEM_ALL, str(TESTS), str(folder)],
        input=json.dumps([lie for lie, _ in LIES]),
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    statuses = [int(line) for line in done.stdout.splitlines()]
    return lambda number: (
        statuses[number],
        (folder / f"{number}.stderr").read_text(),
        (folder / f"{number}.md").exists(),
    )


@pytest.mark.parametrize("number", range(len(LIES)), ids=[complaint for _, complaint in LIES])
def test_a_page_that_would_lie_is_not_written(told: Callable[[int], tuple[int, str, bool]], number: int) -> None:
    status, errors, is_written = told(number)
    assert status == 1
    assert LIES[number][1] in errors
    assert not is_written


def test_the_page_has_everything() -> None:
    text = PAGE.read_text()
    for name in llmdd.v2_list:
        assert f"`{name}" in text, name
    for name in (key for key in vars(llmdd.LlmConfig) if not key.startswith("_")):
        assert f"`{name}`" in text or f"`LLMConfig.{name}`" in text, name
    for member in llmdd.LLMStatusCode:
        assert f"| `{member.name}` | {member.value} |" in text
    for verdict in ("same", "better", "no effect here"):
        assert f"**{verdict}**" in text


def test_no_table_of_the_page_is_broken() -> None:
    widths = {
        table.splitlines()[0]: {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        for table in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE)
    }
    assert widths and all(len(each) == 1 for each in widths.values())


def test_every_link_of_the_page_leads_to_a_test() -> None:
    links = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", PAGE.read_text())
    assert links
    for words, target in links:
        source = (PAGE.parent / target).read_text()
        assert re.search(rf"def test_(d?\d+_)?{words.replace(' ', '_')}\(", source), (words, target)
