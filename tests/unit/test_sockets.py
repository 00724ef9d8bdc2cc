"""Which addresses may be asked, judged where the socket is made."""

from __future__ import annotations

import socket

import pytest

from connector.stream.sockets import Sockets, is_link_local

LINK_LOCAL = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fd00:ec2::254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "::ffff:100.100.100.200",
]


@pytest.mark.parametrize("address", LINK_LOCAL)
def test_addresses_where_clouds_keep_credentials(address):
    assert is_link_local(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "64:ff9b::808:808"]
)
def test_other_addresses_private_ones_too(address):
    """Upstreams within a cluster are upstreams as well."""
    assert not is_link_local(address)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1"])
def test_no_socket_is_made_for_them(address):
    sockets = Sockets(allow_link_local=False)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(OSError, match="link-local"):
        sockets((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80)))
    assert sockets.refused == address


@pytest.mark.parametrize(
    ("address", "is_allowed"), [("127.0.0.1", False), ("127.0.0.1", True), ("169.254.169.254", True)]
)
def test_sockets_notice_a_peer_that_is_gone(address, is_allowed):
    sockets = Sockets(allow_link_local=is_allowed)
    with sockets((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
    assert sockets.refused is None
