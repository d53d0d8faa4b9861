"""llmdd under the name of the original: the same classes, importable from the original's places (api §1.1)."""

from llmdd import *  # noqa: F403
from llmdd import __all__ as __all__
from llmdd import __version__ as __version__
from llmdd import v2_list as v2_list

from . import configs as configs
from . import data_type as data_type
from . import status as status
from . import utils as utils
from . import v2 as v2


def __getattr__(name: str) -> object:
    if name in ("TensorDesc", "Tensor", "KvCacheManager"):
        raise ImportError(f"{name} belongs to the older API of LLM-DataDist (v1), which llmdd does not have")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
