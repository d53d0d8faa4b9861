"""The clusters that a call of ``link_clusters`` names (api §1.5)."""

from __future__ import annotations

import ipaddress

from llmdd._core.enumerations import LLMRole
from llmdd._core.validation import check_type, check_uint16, check_uint64


class IPAddressError(ValueError, RuntimeError):
    """Text that is no IP address. Also a RuntimeError, which the original raises (api D72)."""


def ipv4_as_int(text: str) -> int:
    """An IPv4 address as the integer that LLM-DataDist uses: its first part in the lowest byte.

    Examples
    --------
    >>> ipv4_as_int("1.2.3.4")
    67305985
    """
    try:
        return int.from_bytes(ipaddress.IPv4Address(text).packed, "little")
    except ipaddress.AddressValueError:
        raise IPAddressError(f"Can not parse ip str: {text!r}") from None


def address_text(ip: int | str) -> str:
    """The text form of an address as it stands in an address list.

    Examples
    --------
    >>> address_text(67305985), address_text("::1")
    ('1.2.3.4', '::1')
    """
    if isinstance(ip, str):
        return ip
    return str(ipaddress.IPv4Address((ip & 0xFFFFFFFF).to_bytes(4, "little")))


class LLMClusterInfo:
    """One cluster to link to, or to unlink from.

    Examples
    --------
    >>> cluster = LLMClusterInfo()
    >>> cluster.remote_cluster_id = 1
    >>> cluster.append_local_ip_info("127.0.0.1", 0)
    >>> cluster.append_remote_ip_info("127.0.0.1", 26000)
    >>> cluster.remote_ip_info_list
    [(16777343, 26000)]
    """

    def __init__(self) -> None:
        self._remote_cluster_id: int | None = None
        self._remote_role_type: LLMRole | int | None = None
        self._local_ip_info_list: list[tuple[int | str, int]] = []
        self._remote_ip_info_list: list[tuple[int | str, int]] = []

    @property
    def remote_cluster_id(self) -> int | None:
        """uint64; must be set before the object is used."""
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, remote_cluster_id: int) -> None:
        self._remote_cluster_id = check_uint64("remote_cluster_id", remote_cluster_id)

    @property
    def remote_role_type(self) -> LLMRole | int | None:
        """A label without effect."""
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, remote_role_type: LLMRole | int) -> None:
        self._remote_role_type = check_type("remote_role_type", remote_role_type, LLMRole, int)

    @property
    def local_ip_info_list(self) -> list[tuple[int | str, int]]:
        """Addresses of this end; the port is not bound."""
        return self._local_ip_info_list

    @property
    def remote_ip_info_list(self) -> list[tuple[int | str, int]]:
        """Where the other cluster listens; exactly one."""
        return self._remote_ip_info_list

    def append_local_ip_info(self, ip: str | int, port: int) -> None:
        """Add an address of this end.

        Parameters
        ----------
        ip : str or int
            IPv4 text becomes an integer, first part in the lowest byte. IPv6 text is kept as it is.
        port : int
            uint16; 0 is fine.

        Raises
        ------
        TypeError, ValueError
            An argument of a wrong type, a port out of range, text that is no IP address.
        """
        self._local_ip_info_list.append(_ip_info(ip, port))

    def append_remote_ip_info(self, ip: str | int, port: int) -> None:
        """Add an address at which the other cluster listens; as :meth:`append_local_ip_info`."""
        self._remote_ip_info_list.append(_ip_info(ip, port))


def _ip_info(ip: str | int, port: int) -> tuple[int | str, int]:
    check_type("ip", ip, str, int)
    check_uint16("port", port)
    if isinstance(ip, int):
        return ip, port
    try:
        return str(ipaddress.IPv6Address(ip)), port
    except ipaddress.AddressValueError:
        return ipv4_as_int(ip), port
