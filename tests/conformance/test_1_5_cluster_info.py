"""api §1.5: ``LLMClusterInfo``."""

from __future__ import annotations

import pytest

from llmdd import LLMClusterInfo, LLMRole


def test_a_new_one_is_empty() -> None:
    """api §1.5: ``remote_cluster_id`` is initially None; both lists are empty."""
    info = LLMClusterInfo()
    assert info.remote_cluster_id is None
    assert (info.local_ip_info_list, info.remote_ip_info_list) == ([], [])


@pytest.mark.parametrize("value", [0, 5, 2**64 - 1])
def test_remote_cluster_id(value: int) -> None:
    """api §1.5: ``remote_cluster_id`` is a get/set uint64."""
    info = LLMClusterInfo()
    info.remote_cluster_id = value
    assert info.remote_cluster_id == value


@pytest.mark.parametrize(
    ("wrong", "error"), [("1", TypeError), (1.0, TypeError), (-1, ValueError), (2**64, ValueError)]
)
def test_remote_cluster_id_refuses(wrong: object, error: type[Exception]) -> None:
    """api §1.5: ``remote_cluster_id`` is a uint64."""
    info = LLMClusterInfo()
    with pytest.raises(error):
        info.remote_cluster_id = wrong  # type: ignore[assignment]
    assert info.remote_cluster_id is None


@pytest.mark.parametrize("role", [LLMRole.DECODER, 1])
def test_remote_role_type(role: LLMRole | int) -> None:
    """api §1.5: ``remote_role_type`` is LLMRole or int, unused."""
    info = LLMClusterInfo()
    info.remote_role_type = role
    assert info.remote_role_type == role


def test_remote_role_type_refuses() -> None:
    """api §1.5: ``remote_role_type`` is LLMRole or int."""
    with pytest.raises(TypeError):
        LLMClusterInfo().remote_role_type = "PROMPT"  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["local_ip_info_list", "remote_ip_info_list"])
def test_lists_are_read_only(name: str) -> None:
    """api §1.5: the lists are read-only properties."""
    with pytest.raises(AttributeError):
        setattr(LLMClusterInfo(), name, [])


def test_append() -> None:
    """api §1.5: appended addresses are ``(ip_as_int, port)`` in order."""
    info = LLMClusterInfo()
    info.append_local_ip_info("1.2.3.4", 5)
    info.append_local_ip_info(ip=9, port=0)
    info.append_remote_ip_info("127.0.0.1", 65535)
    assert info.local_ip_info_list == [(67305985, 5), (9, 0)]
    assert info.remote_ip_info_list == [(16777343, 65535)]


def test_text_is_little_endian() -> None:
    """api §1.5: a dotted IPv4 string becomes an int in little-endian byte order."""
    info = LLMClusterInfo()
    info.append_remote_ip_info("1.2.3.4", 1)
    assert info.remote_ip_info_list[0][0] == 67305985


def test_an_int_is_stored_as_it_is() -> None:
    """api §1.5: an int is stored as is."""
    info = LLMClusterInfo()
    info.append_remote_ip_info(16909060, 1)
    assert info.remote_ip_info_list == [(16909060, 1)]
