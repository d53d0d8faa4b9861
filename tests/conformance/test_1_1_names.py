"""api §1.1: names, and where they are imported from."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import llmdd
import llmdd.dropin

V2_LIST = [
    "LLMClusterInfo",
    "LLMStatusCode",
    "LLMException",
    "LLMRole",
    "LlmConfig",
    "LLMConfig",
    "DataType",
    "Status",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "KvCache",
    "Cache",
    "BlocksCacheKey",
    "LLMDataDist",
    "Placement",
    "RegisterMemStatus",
    "LayerSynchronizer",
    "TransferConfig",
    "CacheTask",
    "TransferWithCacheKeyConfig",
    "Memtype",
    "MemInfo",
]

#: What existing programs import from each submodule.
SUBMODULE_NAMES = {
    "status": ["LLMStatusCode", "LLMException", "Status"],
    "configs": ["LLMRole", "LlmConfig", "LLMConfig", "LLMClusterInfo"],
    "data_type": ["DataType", "dtype_to_np_dtype", "valid_np_dtypes", "np_dtype_to_dtype"],
    "utils.utils": ["check_isinstance", "check_uint64", "check_uint32", "check_int64", "check_int32", "check_dict"],
    "utils.log": [],
    "v2.llm_types": ["CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "BlocksCacheKey", "Cache", "Placement"],
    "v2.llm_utils": [],
    "v2.cache_manager": ["CacheManager"],
    "v2.llm_datadist": ["LLMDataDist", "_shutdown_handler"],
    "v2.config": [],
}


@pytest.fixture
def llm_datadist() -> Any:
    """The compatibility package, under the original's name, for as long as a test runs."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "llm_datadist"}
    loggers = [logging.getLogger(name) for name in ("llmdd", "LLM_DATADIST")]
    logged = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    llmdd.dropin.install()
    yield importlib.import_module("llm_datadist")
    for logger, (handlers, level, propagate) in zip(loggers, logged, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    for name in [name for name in sys.modules if name.split(".")[0] == "llm_datadist"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("name", V2_LIST)
def test_every_exported_name_is_there(name: str) -> None:
    """api §1.1: the package exports these names."""
    assert getattr(llmdd, name) is not None


def test_v2_list_and_all(llm_datadist: Any) -> None:
    """api §1.1: the export list is the attribute v2_list, and ``__all__`` is it."""
    assert set(llm_datadist.v2_list) == set(V2_LIST)
    assert list(llm_datadist.__all__) == list(llm_datadist.v2_list)


def test_a_star_import_gives_exactly_the_list(llm_datadist: Any) -> None:
    """api §1.1: ``from llm_datadist import *`` gives the names of the list."""
    names: dict[str, Any] = {}
    exec("from llm_datadist import *", names)
    assert set(names) - {"__builtins__"} == set(V2_LIST)


def test_llm_config_has_two_names() -> None:
    """api §1.1: ``LLMConfig is LlmConfig``."""
    assert llmdd.LLMConfig is llmdd.LlmConfig


def test_cache_manager_and_push_type_are_not_exported(llm_datadist: Any) -> None:
    """api §1.1: CacheManager and PushType exist but are not in the export list."""
    cache_manager = importlib.import_module("llm_datadist.v2.cache_manager")
    types = importlib.import_module("llm_datadist.v2.llm_types")
    assert cache_manager.CacheManager is llmdd.CacheManager
    assert {member.name for member in types.PushType} == {"NO_CACHE_KEY", "BLOCKS_CACHE_KEY", "CACHE_KEY_BY_ID"}
    assert not {"CacheManager", "PushType"} & set(llm_datadist.v2_list)


def test_the_cache_manager_is_obtained_from_the_instance(make_datadist: Any) -> None:
    """api §1.1: CacheManager is obtained from ``LLMDataDist.cache_manager``."""
    datadist = make_datadist(1)
    assert isinstance(datadist.cache_manager, llmdd.CacheManager)
    assert datadist.cache_manager is datadist.cache_manager


@pytest.mark.parametrize("name", ["TensorDesc", "Tensor", "KvCacheManager"])
def test_names_of_v1_are_import_errors(llm_datadist: Any, name: str) -> None:
    """api §1.1: accessing a name of the older API raises ImportError."""
    with pytest.raises(ImportError):
        getattr(llm_datadist, name)


def test_an_unknown_name_is_an_attribute_error(llm_datadist: Any) -> None:
    """api §1.1: any other unknown attribute is an AttributeError with ``has no attribute``."""
    for package in (llm_datadist, llmdd):
        with pytest.raises(AttributeError, match="has no attribute"):
            package.NoSuchName  # noqa: B018


@pytest.mark.parametrize("path", SUBMODULE_NAMES)
def test_submodule_paths_resolve(llm_datadist: Any, path: str) -> None:
    """api §1.1: existing code imports from these paths."""
    module = importlib.import_module(f"llm_datadist.{path}")
    for name in SUBMODULE_NAMES[path]:
        assert getattr(module, name) is not None, f"{path} has no {name}"


def test_shutdown_handler_is_callable(llm_datadist: Any) -> None:
    """api §1.1: ``v2.llm_datadist`` has ``_shutdown_handler``."""
    assert callable(importlib.import_module("llm_datadist.v2.llm_datadist")._shutdown_handler)


def test_numpy_types_of_data_types(llm_datadist: Any) -> None:
    """api §1.1: ``data_type`` offers dtype_to_np_dtype (14, BF16 as float16), its values, and the way back (13)."""
    data_type = importlib.import_module("llm_datadist.data_type")
    types = llmdd.DataType
    assert set(data_type.dtype_to_np_dtype) == set(types)
    assert np.dtype(data_type.dtype_to_np_dtype[types.DT_BF16]) == np.dtype(np.float16)
    assert list(data_type.valid_np_dtypes) == list(data_type.dtype_to_np_dtype.values())
    assert set(data_type.np_dtype_to_dtype.values()) == set(types) - {types.DT_BF16}
    for numpy_type, member in data_type.np_dtype_to_dtype.items():
        assert np.dtype(data_type.dtype_to_np_dtype[member]) == np.dtype(numpy_type)


def test_importing_does_not_touch_the_environment() -> None:
    """api §1.1, D78: importing sets no environment variable."""
    program = "import os; before = dict(os.environ); import llmdd; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")
