"""What ``link`` is called with, checked in the order of api §2.4."""

from __future__ import annotations

from itertools import pairwise

from llmdd._core.status import MissingArgument, invalid
from llmdd._core.validation import check_type, check_uint32, check_uint64

MAX_MEMBERS = 4
MAX_NAME_LENGTH = 127


def check_link_arguments(comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> None:
    """Refuse what ``link`` cannot be called with.

    Raises
    ------
    AttributeError, TypeError, ValueError, LLMException
        For the first argument that is wrong.
    """
    _check_name(comm_name)
    _check_ranks(cluster_rank_info)
    check_type("rank_table", rank_table, str)
    if len(cluster_rank_info) < 2:
        raise invalid(f"cluster num must be bigger than 1, it is {len(cluster_rank_info)}")
    ranks = list(cluster_rank_info.values())
    if any(rank >= following for rank, following in pairwise(ranks)):
        raise invalid(f"the ranks of cluster_rank_info must be ordered, they are {ranks}")


def _check_name(comm_name: str) -> None:
    check_type("comm_name", comm_name, str)
    if not comm_name:
        raise invalid("comm_name can not be empty")
    if len(comm_name) > MAX_NAME_LENGTH:
        raise invalid(f"the length of comm_name should be less than {MAX_NAME_LENGTH + 1}, it is {len(comm_name)}")


def _check_ranks(cluster_rank_info: dict[int, int]) -> None:
    if cluster_rank_info is None:
        raise MissingArgument("cluster_rank_info only support [dict], but got None")
    check_type("cluster_rank_info", cluster_rank_info, dict)
    for cluster_id, rank in cluster_rank_info.items():
        if not isinstance(cluster_id, int):
            raise TypeError(f"cluster_rank_info dict key only support [int], but got {type(cluster_id)}")
        if not isinstance(rank, int):
            raise TypeError(f"cluster_rank_info dict value only support [int], but got {type(rank)}")
    if len(cluster_rank_info) > MAX_MEMBERS:
        raise invalid(f"the number of clusters can not be greater than {MAX_MEMBERS}, it is {len(cluster_rank_info)}")
    for cluster_id, rank in cluster_rank_info.items():
        check_uint64("cluster id of cluster_rank_info", cluster_id)
        check_uint32("rank of cluster_rank_info", rank)
