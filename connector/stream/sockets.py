"""Sockets for upstreams: which addresses they may lead to, and how they notice that a peer is gone."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A peer that is gone without a word is noticed within a minute, whatever the dialect's stall."""

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "fd00:ec2::254",  # Amazon EC2
            "168.63.129.16",  # Azure
            "100.100.100.200",  # Alibaba Cloud
            "192.0.0.192",  # Oracle Cloud
        ),
    )
)
"""Where clouds hand out credentials, beyond 169.254.169.254, which is link-local."""


class Sockets:
    """Makes the sockets of one connection, for aiohttp's ``socket_factory``.

    The address is looked at where the socket is made for it: a name that answers differently the second
    time it is asked for (DNS rebinding) gains nothing.

    Attributes:
        refused: an address that was refused.
    """

    def __init__(self, *, allow_link_local: bool) -> None:
        self._allow_link_local = allow_link_local
        self.refused: str | None = None

    def __call__(self, address: tuple[Any, ...]) -> socket.socket:
        """Return a socket for *address*, an item of `socket.getaddrinfo`.

        Raises:
            OSError: the address must not be asked.
        """
        family, kind, protocol, _, name = address
        if not self._allow_link_local and is_link_local(name[0]):
            self.refused = name[0]
            raise OSError(f"{name[0]} is a link-local or metadata address")
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, number in _KEEP_ALIVE.items():
            if hasattr(socket, option):  # each platform has its own
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), number)
        return made


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv4 addresses as IPv6-only networks spell them (RFC 6052)."""


def is_link_local(text: str) -> bool:
    """Whether *text* is a link-local address, or one where a cloud hands out credentials."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            address = ipaddress.IPv4Address(address.packed[-4:])
        elif address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    return address.is_link_local or address in _METADATA
