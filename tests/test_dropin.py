"""Programs written for ``llm_datadist``, run against llmdd by ``python -m llmdd.dropin`` and by ``install``."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import llmdd
from llmdd.dropin import PACKAGES

DROPIN = ("-m", "llmdd.dropin")

# Says everything of itself that python decides for a program, and ends in a traceback.
CURIOUS = """
import sys

def confess():
    spec = __spec__ and (__spec__.name, __spec__.origin)
    own = globals().get("__file__")
    print(sys.argv, repr(sys.path[0]), __name__, own, spec, __package__, type(__loader__).__name__)
    print(sys.modules["__main__"].__dict__ is globals(), __builtins__ is sys.modules["builtins"])
    raise LookupError("the end") from ValueError("the cause")

confess()
"""


def python(
    *arguments: str, cwd: Path, text: str | None = None, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run python; ``path`` is where another package is installed."""
    inherited = {name: value for name, value in os.environ.items() if name != "ASCEND_GLOBAL_LOG_LEVEL"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env=inherited | environment,
    )


def answer(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Writes a script; its path."""

    def write(source: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(source)
        return str(path)

    return write


# a program sees what it sees under python


def arranged(folder: Path) -> None:
    """The curious program in every shape that python can run."""
    (folder / "curious.py").write_text(CURIOUS)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "__main__.py").write_text(CURIOUS)
    (folder / "package" / "module.py").write_text(CURIOUS)
    (folder / "folder").mkdir()
    (folder / "folder" / "__main__.py").write_text(CURIOUS)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "link.py").symlink_to(folder / "curious.py")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", CURIOUS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("curious.py", "one", "--two"),
        ("./curious.py", "--replace"),
        ("elsewhere/link.py",),
        ("package/module.py", "-m"),
        ("-m", "curious", "one"),
        ("-m", "package", "-c"),
        ("-m", "package.module"),
        ("HERE/folder", "one"),
        ("HERE/archive.zip",),
    ],
    ids=" ".join,
)
def test_a_program_sees_and_shows_what_it_does_under_python(arguments: tuple[str, ...], tmp_path: Path) -> None:
    arranged(tmp_path)
    arguments = tuple(argument.replace("HERE", str(tmp_path)) for argument in arguments)
    plain, dropped_in = python(*arguments, cwd=tmp_path), python(*DROPIN, *arguments, cwd=tmp_path)
    assert plain.returncode == dropped_in.returncode == 1
    assert plain.stdout and dropped_in.stdout == plain.stdout
    assert traceback_of_the_program(plain) == dropped_in.stderr


def traceback_of_the_program(plain: subprocess.CompletedProcess[str]) -> str:
    """What python itself shows, without the frames of the module that runs modules."""
    lines = plain.stderr.splitlines(keepends=True)
    kept, own = [], True
    for line in lines:
        if line.startswith("  File "):
            own = "runpy" not in line
        elif not line.startswith(" "):
            own = True
        if own:
            kept.append(line)
    return "".join(kept)


@pytest.mark.parametrize("argument", ["-c", "-"])
def test_code_that_is_no_file(argument: str, tmp_path: Path) -> None:
    code = "import sys; print(sys.argv, repr(sys.path[0]), __name__, __spec__, globals().get('__file__'))\nnowhere"
    arguments = (argument, code, "one") if argument == "-c" else (argument, "one")
    runs = [python(*front, *arguments, cwd=tmp_path, text=code) for front in ((), DROPIN)]
    assert runs[0].stdout == runs[1].stdout and "one" in runs[0].stdout
    assert runs[0].stderr == runs[1].stderr and "NameError" in runs[0].stderr
    assert runs[0].returncode == runs[1].returncode == 1


@pytest.mark.parametrize(
    "source",
    [
        "pass",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a word before parting')",
        "raise KeyboardInterrupt",
        "def unfinished(:",
        "import sys; sys.excepthook = lambda kind, value, traceback: print(kind, value); 1 / 0",
        "import atexit; atexit.register(print, 'last'); 1 / 0",
        "import threading; threading.Thread(target=lambda: print('joined')).start(); 1 / 0",
        "try:\n    1 / 0\nfinally:\n    nowhere",
        "x: undefined = 1",
    ],
)
def test_an_end_is_the_same_as_under_python(source: str, script: Callable[[str], str], tmp_path: Path) -> None:
    path = script(source)
    plain, dropped_in = python(path, cwd=tmp_path), python(*DROPIN, path, cwd=tmp_path)
    assert (dropped_in.returncode, dropped_in.stdout, dropped_in.stderr) == (
        plain.returncode,
        plain.stdout,
        plain.stderr,
    )


def test_the_program_is_not_compiled_as_ours_is(script: Callable[[str], str], tmp_path: Path) -> None:
    path = script("def annotated(x: int) -> None: ...\nprint(annotated.__annotations__)")
    assert answer(python(*DROPIN, path, cwd=tmp_path)) == answer(python(path, cwd=tmp_path))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P is new in 3.11")
def test_a_safe_path_is_left_alone(script: Callable[[str], str], tmp_path: Path) -> None:
    path = script("import sys; print(sys.path)")
    plain = answer(python("-P", path, cwd=tmp_path))
    assert answer(python("-P", *DROPIN, path, cwd=tmp_path)) == f"{plain[:-1]}, {str(PACKAGES)!r}]"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "usage: python -m llmdd.dropin"),
        (("-m",), 2, "Argument expected for the -m option"),
        (("-c",), 2, "Argument expected for the -c option"),
        (("--frobnicate",), 2, "unknown option --frobnicate"),
        (("missing.py",), 2, "can't open file"),
        (("-m", "missing"), 1, "No module named missing"),
        (("-m", "missing.part"), 1, "Error while finding module specification for 'missing.part'"),
    ],
)
def test_what_cannot_be_run_is_named(arguments: tuple[str, ...], status: int, words: str, tmp_path: Path) -> None:
    done = python(*DROPIN, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr and "Traceback" not in done.stderr


def test_help(tmp_path: Path) -> None:
    assert "--replace" in answer(python(*DROPIN, "--help", cwd=tmp_path))


# what the package offers

PATHS = {
    "": llmdd.v2_list,
    "status": ["LLMStatusCode", "LLMException", "Status"],
    "configs": ["LLMRole", "LLMClusterInfo", "LlmConfig", "LLMConfig"],
    "data_type": ["DataType", "dtype_to_np_dtype", "valid_np_dtypes", "np_dtype_to_dtype"],
    "utils": [],
    "utils.utils": ["check_isinstance", "check_dict", "check_int32", "check_int64", "check_uint16", "check_uint32"],
    "utils.log": ["log"],
    "v2": [],
    "v2.llm_types": [
        "Cache",
        "CacheDesc",
        "CacheKey",
        "CacheKeyByIdAndIndex",
        "BlocksCacheKey",
        "KvCache",
        "Placement",
        "PushType",
    ],
    "v2.llm_utils": ["LayerSynchronizer", "TransferConfig", "TransferWithCacheKeyConfig", "CacheTask"],
    "v2.cache_manager": ["CacheManager"],
    "v2.llm_datadist": ["LLMDataDist", "_shutdown_handler"],
    "v2.config": ["LLMConfig"],
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path or "package")
def test_every_path_of_the_original_leads_to_the_same_objects(path: str, tmp_path: Path) -> None:
    program = f"""
import llm_datadist, importlib, llmdd, llmdd.datadist
module = importlib.import_module({f"llm_datadist.{path}".rstrip(".")!r})
for name in {PATHS[path]}:
    ours = getattr(llmdd, name, getattr(llmdd.datadist, name, None))
    assert getattr(module, name) is not None and ours in (None, getattr(module, name)), name
print(module.__name__)
"""
    assert answer(python(*DROPIN, "-c", program, cwd=tmp_path)) == f"llm_datadist.{path}".rstrip(".")


def test_a_star_import_gives_the_export_list(tmp_path: Path) -> None:
    program = "before = set(dir()); from llm_datadist import *; print(sorted(set(dir()) - before - {'before'}))"
    assert answer(python(*DROPIN, "-c", program, cwd=tmp_path)) == str(sorted(llmdd.v2_list))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("TensorDesc", "ImportError"),
        ("Tensor", "ImportError"),
        ("KvCacheManager", "ImportError"),
        ("Nonsense", "AttributeError"),
        ("CacheManager", "AttributeError"),
    ],
)
def test_other_names_are_refused(name: str, error: str, tmp_path: Path) -> None:
    done = python(*DROPIN, "-c", f"import llm_datadist; llm_datadist.{name}", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(error) and name in last
    assert ("has no attribute" in last) == (error == "AttributeError")


def test_data_types_of_numpy(tmp_path: Path) -> None:
    program = """
import numpy as np
from llm_datadist.data_type import DataType, dtype_to_np_dtype, np_dtype_to_dtype, valid_np_dtypes
assert (len(dtype_to_np_dtype), len(np_dtype_to_dtype)) == (14, 13) and len(DataType) == 14
assert dtype_to_np_dtype[DataType.DT_BF16] is np.float16 and valid_np_dtypes == list(dtype_to_np_dtype.values())
for data_type, numpy_type in dtype_to_np_dtype.items():
    if data_type is not DataType.DT_BF16:
        assert np_dtype_to_dtype[numpy_type] is data_type and np_dtype_to_dtype[np.dtype(numpy_type)] is data_type
    assert np.dtype(numpy_type) in np_dtype_to_dtype
assert None not in np_dtype_to_dtype and np.complex64 not in np_dtype_to_dtype and "nonsense" not in np_dtype_to_dtype
assert np_dtype_to_dtype.get(np.complex64, 5) == 5
"""
    answer(python(*DROPIN, "-c", program, cwd=tmp_path))


def test_checks_of_arguments(tmp_path: Path) -> None:
    program = """
from llm_datadist.utils.utils import *
def refused(kind, check, *arguments):
    try:
        check(*arguments)
    except kind as error:
        assert "number" in str(error), error
    else:
        raise AssertionError(arguments)
for check, low, high in [
    (check_uint16, 0, 2**16), (check_uint32, 0, 2**32), (check_uint64, 0, 2**64),
    (check_int32, -2**31, 2**31), (check_int64, -2**63, 2**63),
]:
    check("number", low), check("number", high - 1)
    refused(ValueError, check, "number", low - 1), refused(ValueError, check, "number", high)
    refused(TypeError, check, "number", "1"), refused(TypeError, check, "number", None)
check_isinstance("number", 1, int), check_isinstance("number", 1, (str, int)), check_isinstance("number", 1, [int])
refused(TypeError, check_isinstance, "number", 1, str)
check_dict("number", {1: "a"}, int, str)
refused(TypeError, check_dict, "number", [], int, str)
refused(TypeError, check_dict, "number", {"1": "a"}, int, str)
refused(TypeError, check_dict, "number", {1: 2}, int, str)
"""
    answer(python(*DROPIN, "-c", program, cwd=tmp_path))


PREFILL_AND_DECODE = """
from llm_datadist import *

config = LLMConfig()
config.enable_cache_manager = True
config.mem_pool_cfg = '{"memory_size": 1048576}'
config.listen_ip_info = "127.0.0.1:0"
prompt, decoder = LLMDataDist(LLMRole.PROMPT, 1), LLMDataDist(LLMRole.DECODER, 2)
prompt.init(config.generate_options()), decoder.init(config.generate_options())
cluster = LLMClusterInfo()
cluster.remote_cluster_id = 1
cluster.append_local_ip_info("127.0.0.1", 0)
cluster.append_remote_ip_info(*prompt.listen_address)
assert decoder.link_clusters([cluster], timeout=5000)[0] == LLMStatusCode.LLM_SUCCESS
desc = CacheDesc(num_tensors=2, shape=[1, 64], data_type=DataType.DT_INT8, placement=Placement.DEVICE)
filled = prompt.cache_manager.allocate_cache(desc, [CacheKey(prompt_cluster_id=1, req_id=7)])
filled.tensors[1][0, :] = 42
cache = decoder.cache_manager.allocate_cache(desc)
decoder.cache_manager.pull_cache(CacheKey(1, 7), cache)
print(cache.tensors[1][0, 63])
"""


def test_a_program_runs_and_its_instances_are_finalized_at_its_end(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    done = python(*DROPIN, script(PREFILL_AND_DECODE), cwd=tmp_path)
    assert (answer(done), done.stderr) == ("42", "")


# processes of a program


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("how", ["command", "install"])
def test_children_find_the_package_too(method: str, how: str, script: Callable[[str], str], tmp_path: Path) -> None:
    source = f"""
import multiprocessing
{"import llmdd.dropin; llmdd.dropin.install()" if how == "install" else ""}
from llm_datadist import CacheKey

def child(key, answers):
    import llm_datadist.v2.llm_datadist, llmdd
    answers.put((repr(key), type(key) is llmdd.CacheKey, llm_datadist.CacheKey is llmdd.CacheKey))

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    answers = context.Queue()
    process = context.Process(target=child, args=(CacheKey(1, 7), answers))
    process.start()
    print(answers.get(timeout=50) == (repr(CacheKey(1, 7)), True, True))
    process.join()
"""
    front = DROPIN if how == "command" else ()
    assert answer(python(*front, script(source), cwd=tmp_path)) == "True"


# beside another llm_datadist


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder in which another ``llm_datadist`` is installed."""
    package = tmp_path / "site" / "llm_datadist"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("CacheKey = 'the other one'\n")
    (tmp_path / "work").mkdir()
    return package.parent


WHICH = "import llm_datadist; print(llm_datadist.CacheKey)"
OURS = str(llmdd.CacheKey)


def test_an_installed_package_is_left_alone_and_that_is_said(site: Path, tmp_path: Path) -> None:
    done = python(*DROPIN, "-c", WHICH, cwd=tmp_path / "work", path=site)
    assert answer(done) == "the other one"
    assert str(site / "llm_datadist") in done.stderr and "--replace" in done.stderr


def test_replace_puts_ours_before_it_and_before_nothing_else(site: Path, tmp_path: Path) -> None:
    done = python(*DROPIN, "--replace", "-c", f"{WHICH}; import sys; print(sys.path[:3])", cwd=tmp_path, path=site)
    assert answer(done).splitlines() == [OURS, str(["", str(PACKAGES), str(site)])]
    assert done.stderr == ""


def test_replace_goes_before_a_copy_beside_the_script(site: Path) -> None:
    (site / "script.py").write_text(WHICH)
    assert answer(python(*DROPIN, str(site / "script.py"), cwd=site.parent)) == "the other one"
    assert answer(python(*DROPIN, "--replace", str(site / "script.py"), cwd=site.parent)) == OURS


def test_children_get_the_replacement(site: Path, tmp_path: Path, script: Callable[[str], str]) -> None:
    source = """
import multiprocessing

def child(answers):
    import llm_datadist
    answers.put(str(llm_datadist.CacheKey))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    print(answers.get(timeout=50))
    process.join()
"""
    path = script(source)
    assert answer(python(*DROPIN, path, cwd=tmp_path, path=site)) == "the other one"
    assert answer(python(*DROPIN, "--replace", path, cwd=tmp_path, path=site)) == OURS


def test_a_mere_folder_of_that_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "llm_datadist").mkdir()
    assert answer(python(*DROPIN, "-c", WHICH, cwd=tmp_path)) == OURS


def test_install_says_whether_it_took_place(site: Path, tmp_path: Path) -> None:
    program = f"import llmdd.dropin; print(llmdd.dropin.install()); {WHICH}"
    assert answer(python("-c", program, cwd=tmp_path)).splitlines() == ["True", OURS]
    assert answer(python("-c", program, cwd=tmp_path, path=site)).splitlines() == ["False", "the other one"]
    program = program.replace("install()", "install(replace=True)")
    assert answer(python("-c", program, cwd=tmp_path, path=site)).splitlines() == ["True", OURS]


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    program = f"""
import sys, llmdd.dropin
for replace in (False, True, False):
    assert llmdd.dropin.install(replace)
import llm_datadist
assert llmdd.dropin.install(True)
print(sys.path.count({str(PACKAGES)!r}))
"""
    assert answer(python("-c", program, cwd=tmp_path)) == "1"


def test_what_was_imported_is_not_replaced(site: Path, tmp_path: Path) -> None:
    program = f"""
import sys, llm_datadist, llmdd.dropin
before = list(sys.path)
assert not llmdd.dropin.install()
try:
    llmdd.dropin.install(replace=True)
except ImportError as error:
    print(error)
assert sys.path == before
{WHICH}
"""
    refusal, which = answer(python("-c", program, cwd=tmp_path, path=site)).splitlines()
    assert "was imported already" in refusal and str(site) in refusal
    assert which == "the other one"


def test_importing_llmdd_installs_nothing(tmp_path: Path) -> None:
    done = python("-c", "import llmdd, llmdd.dropin; import llm_datadist", cwd=tmp_path)
    assert done.returncode == 1 and "No module named 'llm_datadist'" in done.stderr


# the log

LOGGING = """
import logging
from llm_datadist.utils.log import log
assert log.name == "LLM_DATADIST"
for logger in (log, logging.getLogger("llmdd")):
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("%s at %s", logger.name, level)
"""


@pytest.mark.parametrize(("threshold", "count"), [(None, 1), ("0", 4), ("1", 3), ("2", 2), ("3", 1), ("loud", 1)])
def test_the_log_goes_to_standard_output_from_the_level_asked_for(
    threshold: str | None, count: int, tmp_path: Path
) -> None:
    environment = {} if threshold is None else {"ASCEND_GLOBAL_LOG_LEVEL": threshold}
    done = python(*DROPIN, "-c", LOGGING, cwd=tmp_path, **environment)
    lines = answer(done).splitlines()
    levels = ["debug", "info", "warning", "error"][4 - count :]
    assert [line.split()[-3:] for line in lines] == [
        [logger, "at", level] for logger in ("LLM_DATADIST", "llmdd") for level in levels
    ]
    assert done.stderr == ""


def test_handlers_of_the_program_are_left_alone(tmp_path: Path) -> None:
    program = """
import logging, sys
logging.getLogger("llmdd").addHandler(logging.StreamHandler(sys.stderr))
import llm_datadist
logging.getLogger("llmdd").warning("to standard error")
"""
    done = python(*DROPIN, "-c", program, cwd=tmp_path)
    assert (answer(done), done.stderr) == ("", "to standard error\n")
