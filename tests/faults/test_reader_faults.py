"""The reader against servers that stall, lie, break off, bomb and redirect, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from fault_server import (
    OK,
    PLAIN,
    Connection,
    FaultServer,
    Script,
    answer,
    chunk,
    hangs,
    ok,
    says,
    status,
)
from reading import PATIENCE_S, first_loss, ids, lost, manners, reader, take, until

from connector.auth import BearerAuth
from connector.stream.budget import Budget
from connector.stream.credentials import Bearer
from connector.stream.inflate import zstd
from connector.stream.policy import Outcome
from connector.stream.reader import Connected, Connecting, Live, Lost, ReaderEvent, Received
from connector.stream.transport import Tls

# Silence


async def test_a_half_open_connection_is_given_up() -> None:
    its = manners(liveness={"connect_timeout_s": 0.1, "headers_timeout_s": 0.2})
    async with FaultServer.of(hangs) as server:
        loss = await first_loss(reader(server.url, its))
        assert loss.is_stall
        assert "no answer within 0.3 s" in loss.reason
        await server.connections[0].gone()


async def test_a_server_that_accepts_nothing_is_given_up() -> None:
    """Its queue of connections is full, so the handshake never ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            waiting.append(one)
        its = manners(liveness={"connect_timeout_s": 0.2, "headers_timeout_s": 0.2})
        loss = await first_loss(reader(f"http://127.0.0.1:{address[1]}/", its))
        assert loss.outcome is Outcome.NETWORK
        for one in waiting:
            one.close()


async def test_a_stall_without_a_word_ends_the_connection() -> None:
    its = manners(liveness={"stall_timeout_s": 0.3})
    async with FaultServer.of(says(OK, chunk(status(1) + status(2))), says(OK, chunk(status(3)))) as server:
        seen = await take(reader(server.url, its), until(3))
        assert ids(seen) == ["1", "2", "3"]
        (loss,) = lost(seen)
        assert loss.is_stall
        await server.connections[0].gone()


async def test_keep_alives_keep_a_silent_stream_alive() -> None:
    async def slow(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(OK)
        for _ in range(40):
            await connection.send(chunk(b"\r\n"))
            await asyncio.sleep(0.1)
        await connection.send(chunk(status(1)))
        await connection.until_closed()

    async with FaultServer.of(slow) as server:
        seen = await take(reader(server.url, manners(liveness={"stall_timeout_s": 3})), until(1))
        assert lost(seen) == []


# Ends


RESET = b"RST"
BREAKS = {
    "reset": ([OK, chunk(status(1) + b'{"id":2')], RESET),
    "content-length too long": ([ok("Content-Length: 1000"), status(1) + b'{"id":2'], b""),
    "no last chunk": ([OK, chunk(status(1) + b'{"id":2')], b""),
    "chunk cut": ([OK, chunk(status(1))], b'50\r\n{"id":2'),
    "bad chunk": ([OK, chunk(status(1) + b'{"id":2')], b"zz\r\n"),
    "negative chunk": ([OK, chunk(status(1) + b'{"id":2')], b"-5\r\nabcde\r\n"),
    "huge chunk": ([OK, chunk(status(1) + b'{"id":2')], b"f" * 17 + b"\r\nx"),
    "no length and no chunks": ([PLAIN, status(1) + b'{"id":2'], b""),
}


@pytest.mark.parametrize("name", BREAKS)
async def test_a_body_that_breaks_off_costs_its_tail_alone(name: str) -> None:
    """Once its first status is received: an RST, for one, overtakes what is unread."""
    parts, end = BREAKS[name]
    received = asyncio.Event()

    async def breaks(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(*parts)
        await received.wait()
        if end is RESET:
            connection.reset()
        else:
            await connection.send(end)

    def enough(seen: list[ReaderEvent]) -> bool:
        if ids(seen):
            received.set()
        return len(ids(seen)) == 2

    async with FaultServer.of(breaks, says(OK, chunk(status(3)))) as server:
        seen = await take(reader(server.url, manners(liveness={"stall_timeout_s": 2})), enough)
        assert ids(seen) == ["1", "3"]
        loss = lost(seen)[0]
        assert loss.outcome is Outcome.NETWORK
        assert loss.discarded["cut"] == 7
        assert loss.reason.isprintable()


async def test_a_server_that_hangs_up_is_asked_once_per_attempt() -> None:
    """The HTTP library would ask again by itself, past every back-off and budget."""
    async with FaultServer.of(*[says(b"", then_hang=False)] * 9, says(OK, chunk(status(1)))) as server:
        seen = await take(reader(server.url), until(1))
        assert len(lost(seen)) == 9
        assert len(server.connections) == 10


# TLS


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def serving(certificate: trustme.LeafCert, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def ca_file(authority: trustme.CA, folder: Path) -> Path:
    file = folder / "ca.pem"
    file.write_bytes(authority.cert_pem.bytes())
    return file


async def test_a_certificate_that_its_authority_vouches_for(authority: trustme.CA, tmp_path: Path) -> None:
    tls = serving(authority.issue_cert("127.0.0.1"))
    async with FaultServer.of(says(OK, chunk(status(1))), tls=tls) as server:
        seen = await take(reader(server.url, tls=Tls(ca_file=ca_file(authority, tmp_path))), until(1))
        assert lost(seen) == []


@pytest.mark.parametrize("wrong", ["host", "expired", "authority"])
async def test_a_certificate_that_proves_nothing(wrong: str, authority: trustme.CA, tmp_path: Path) -> None:
    certificate = {
        "host": lambda: authority.issue_cert("elsewhere.example"),
        "expired": lambda: authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) - timedelta(days=1)),
        "authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
    }[wrong]()
    async with FaultServer.of(tls=serving(certificate)) as server:
        source = reader(
            server.url, tls=Tls(ca_file=ca_file(authority, tmp_path)), credentials=Bearer(lambda: "secret")
        )
        loss = await first_loss(replace(source, budget=(budget := Budget(5, 300))))
        assert loss.outcome is Outcome.NETWORK
        assert "certificate verify failed" in loss.reason.lower()
        assert {"host": "mismatch", "expired": "expired", "authority": "issuer"}[wrong] in loss.reason.lower()
        assert budget.spent(0) == (), "the upstream never saw a request"
        assert all(request == b"" for request in server.requests)


async def test_a_public_authority_does_not_vouch_for_ours(authority: trustme.CA) -> None:
    async with FaultServer.of(tls=serving(authority.issue_cert("127.0.0.1"))) as server:
        assert "certificate verify failed" in (await first_loss(reader(server.url))).reason.lower()


async def test_no_tls_where_tls_is_expected() -> None:
    async def speaks_plainly(connection: Connection) -> None:
        await connection.send(answer(400))

    async with FaultServer.of(speaks_plainly) as server:
        loss = await first_loss(reader(server.url.replace("http:", "https:")))
        assert loss.outcome is Outcome.NETWORK


async def test_a_client_certificate_is_shown_and_read_anew(authority: trustme.CA, tmp_path: Path) -> None:
    """A connection is refused without one, and made as soon as the file holds a good one."""
    clients = trustme.CA()
    stranger = trustme.CA().issue_cert("me@example.com")
    known = clients.issue_cert("me@example.com")
    file = tmp_path / "me.pem"
    stranger.private_key_and_cert_chain_pem.write_to_path(str(file))
    mine = Tls(ca_file=ca_file(authority, tmp_path), certificate_file=file)
    async with FaultServer.of(
        *[says(OK, chunk(status(1)))] * 50, tls=serving(authority.issue_cert("127.0.0.1"), clients)
    ) as server:

        def enough(seen: list[ReaderEvent]) -> bool:
            if len(lost(seen)) == 2:
                known.private_key_and_cert_chain_pem.write_to_path(str(file))
            return bool(ids(seen))

        seen = await take(reader(server.url, tls=mine), enough)
        assert len(lost(seen)) >= 2
        assert lost(seen)[0].outcome is Outcome.NETWORK


async def test_a_certificate_file_that_is_gone_is_waited_for(authority: trustme.CA, tmp_path: Path) -> None:
    async with FaultServer.of(
        says(OK, chunk(status(1))), tls=serving(authority.issue_cert("127.0.0.1"))
    ) as server:
        file = tmp_path / "ca.pem"

        def enough(seen: list[ReaderEvent]) -> bool:
            if len(lost(seen)) == 2:
                ca_file(authority, tmp_path)
            return bool(ids(seen))

        seen = await take(reader(server.url, tls=Tls(ca_file=file)), enough)
        assert "no TLS" in lost(seen)[0].reason


# Headers


async def test_headers_that_trickle_in_are_given_up() -> None:
    """A byte comes more often than any stall timer asks for."""

    async def trickles(connection: Connection) -> None:
        await connection.read_request()
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.02)

    its = manners(liveness={"connect_timeout_s": 0.2, "headers_timeout_s": 0.4})
    async with FaultServer.of(trickles) as server:
        loss = await first_loss(reader(server.url, its))
        assert loss.is_stall
        await server.connections[0].gone()


@pytest.mark.parametrize("header", [b"X-Long: " + b"a" * (1 << 20) + b"\r\n", b"X-Many: a\r\n" * 200_000])
async def test_headers_without_end_end_the_attempt(header: bytes) -> None:
    async with FaultServer.of(says(b"HTTP/1.1 200 OK\r\n", header, then_hang=False)) as server:
        assert (await first_loss(reader(server.url))).outcome is Outcome.NETWORK


# Sizes


MEASURE = Path(__file__).with_name("measure.py")
MIB = 1 << 20


async def measured(url: str, coding: str = "") -> dict[str, str]:
    """Run a reader in a process of its own; return what it says of itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(MEASURE), url, coding, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return dict(line.split("=", 1) for line in said.decode().splitlines())


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_bomb_ends_the_connection_and_memory_stays_flat(coding: str) -> None:
    block = {"gzip": gzip.compress, "zstd": zstd.compress}[coding](bytes(8 * MIB))
    head = ok("Content-Type: application/json", f"Content-Encoding: {coding}")
    async with FaultServer.of(says(head, *[block] * 128)) as server:  # a gigabyte
        said = await measured(server.url, coding)
    assert "a compression bomb" in said["reason"]
    assert said["statuses"] == "0"
    assert int(said["grown_kib"]) < 32 * 1024


async def test_an_endless_line_is_skipped_and_memory_stays_flat() -> None:
    """A gigabyte of it; and the stream goes on after it."""
    parts = [status(1), *[b"x" * MIB] * 1024, b"\n", status(2)]
    async with FaultServer.of(says(PLAIN, *parts, then_hang=False)) as server:
        said = await measured(server.url)
    assert said["statuses"] == "2"
    assert int(said["oversize"]) == 1024 * MIB
    assert int(said["grown_kib"]) < 32 * 1024


# Redirects


async def test_a_redirect_loop_ends(authority: trustme.CA, tmp_path: Path) -> None:
    tls = serving(authority.issue_cert("127.0.0.1"))
    loops = [says(answer(307, "Location: /stream"), then_hang=False)] * 20
    async with FaultServer.of(*loops, tls=tls) as server:
        loss = await first_loss(reader(server.url, tls=Tls(ca_file=ca_file(authority, tmp_path))))
        assert loss.outcome is Outcome.HTTP
        assert "more than 5 redirects" in loss.reason
        assert len(server.connections) == 6


async def test_credentials_never_follow_a_redirect(authority: trustme.CA, tmp_path: Path) -> None:
    tls = serving(authority.issue_cert("127.0.0.1"))
    async with FaultServer.of(tls=tls) as other:
        there = says(answer(307, f"Location: {other.url}"))
        async with FaultServer.of(there, tls=tls) as server:
            source = reader(
                server.url,
                credentials=Bearer(lambda: "secret"),
                tls=Tls(ca_file=ca_file(authority, tmp_path)),
            )
            loss = await first_loss(source)
            assert "is not followed" in loss.reason
            assert b"Bearer secret" in server.requests[0]
        assert other.connections == []


# Answers that are no stream


async def test_204_means_stop() -> None:
    async with FaultServer.of(says(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        loss = await first_loss(reader(server.url, manners("sse")))
        assert (loss.outcome, loss.retry_in_s) == (Outcome.REFUSED, 900)


async def test_another_media_type_means_another_address() -> None:
    async with FaultServer.of(says(ok("Content-Type: application/json"), status(1))) as server:
        loss = await first_loss(reader(server.url, manners("sse")))
        assert loss.outcome is Outcome.REFUSED
        assert "application/json" in loss.reason


async def test_a_web_page_is_no_stream() -> None:
    async with FaultServer.of(says(ok("Content-Type: text/html"), b"<html>\n")) as server:
        assert (await first_loss(reader(server.url))).outcome is Outcome.HTTP


async def test_a_rotated_token_ends_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old\n")
    auth = BearerAuth(kind="bearer", token_file=file)

    def enough(seen: list[ReaderEvent]) -> bool:
        if lost(seen):
            file.write_text("new\n")
        return bool(ids(seen))

    async with FaultServer.of(says(answer(401)), says(OK, chunk(status(1)))) as server:
        seen = await take(reader(server.url, credentials=auth.credentials()), enough)
        assert [loss.outcome for loss in lost(seen)] == [Outcome.REFUSED]
        assert b"Bearer old" in server.requests[0]
        assert b"Bearer new" in server.requests[1]


# Closing, and not reading


async def closed_while(server: FaultServer, is_there: Callable[[], bool]) -> None:
    """Close a reader of *server* once *is_there*, and wait until the server sees it."""

    async def read() -> None:
        await take(reader(server.url), lambda _: False)

    reading = asyncio.create_task(read())
    async with asyncio.timeout(PATIENCE_S):
        while not is_there():  # noqa: ASYNC110 (the server's state has no event for each of these)
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
        await server.connections[0].gone()


async def test_closing_frees_the_slot_while_waiting_for_headers() -> None:
    async with FaultServer.of(hangs) as server:
        await closed_while(server, lambda: bool(server.requests and server.requests[0]))


async def test_closing_frees_the_slot_in_the_middle_of_a_stream() -> None:
    told = asyncio.Event()

    async def streams(connection: Connection) -> None:
        await says(OK, chunk(status(1)), then_hang=False)(connection)
        told.set()
        await connection.until_closed()

    async with FaultServer.of(streams) as server:
        await closed_while(server, told.is_set)


def established(port: int) -> int:
    """Return how many connections to *port* this machine holds open."""
    return states(port).count("01")


def states(port: int) -> list[str]:
    """Return the states of this machine's sockets that are connected to *port*."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[3] for row in rows if row[2].endswith(f":{port:04X}")]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells which sockets are open")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_slot_is_free_when_closing_returns(
    scheme: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """Where one connection is all there may be, the next one is opened right then."""
    tls = serving(authority.issue_cert("127.0.0.1")) if scheme == "https" else None
    vouched = Tls(ca_file=ca_file(authority, tmp_path))
    async with FaultServer.of(says(OK, chunk(status(1))), tls=tls) as server, asyncio.timeout(PATIENCE_S):
        events = reader(server.url, tls=vouched).events()
        async for event in events:
            if ids([event]):
                break
        assert established(server.port) == 1
        await events.aclose()
        assert established(server.port) == 0


async def test_a_reader_that_is_not_read_lets_the_server_feel_it() -> None:
    """What it sends then waits in its own buffers, and nothing of it is lost."""
    sent = 0
    line = b'{"id":%d,"x":"' + b"x" * 10_000 + b'"}\n'
    count = 3000  # 30 MB

    async def floods(connection: Connection) -> None:
        nonlocal sent
        await connection.read_request()
        await connection.send(PLAIN)
        for sent in range(1, count + 1):
            await connection.send(line % sent)

    async with FaultServer.of(floods) as server, asyncio.timeout(PATIENCE_S):
        got: list[str] = []
        async with aclosing(reader(server.url).events()) as events:
            async for event in events:
                got += ids([event])
                if len(got) < 10:
                    continue
                if sent < count:
                    same, before = 0, -1
                    while same < 5:  # until the server is stuck, or done
                        same, before = (same + 1 if sent == before else 0), sent
                        await asyncio.sleep(0.2)
                    assert sent < count, "30 MB in buffers"
                    break
            async for event in events:
                got += ids([event])
                if len(got) == count:
                    break
        assert got == [str(number) for number in range(1, count + 1)]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells which sockets there are")
@pytest.mark.parametrize("end", [b"", b"zz\r\n"], ids=["no last chunk", "bad chunk"])
async def test_what_came_before_a_break_is_read_even_by_a_slow_reader(end: bytes) -> None:
    """Its connection has failed before it reads what came over it."""

    async def breaks(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(OK, *(chunk(status(number)) for number in range(1, 100)), end)

    async with FaultServer.of(breaks) as server, asyncio.timeout(PATIENCE_S):
        got: list[str] = []
        async with aclosing(reader(server.url).events()) as events:
            async for event in events:
                got += ids([event])
                if isinstance(event, Connected):
                    while states(server.port):  # noqa: ASYNC110 (the kernel sets no event)
                        await asyncio.sleep(0.01)
                if isinstance(event, Lost):
                    break
        assert got == [str(number) for number in range(1, 100)]


# Addresses


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"])
async def test_metadata_addresses_are_not_asked(host: str) -> None:
    loss = await first_loss(reader(f"http://{host}/"))
    assert loss.outcome is Outcome.REFUSED
    assert "allow_link_local" in loss.reason


async def test_a_name_that_leads_there_is_not_asked_either(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    looked_up = loop.getaddrinfo

    async def rebound(host, port, **more):
        return await looked_up("169.254.169.254" if host == "upstream.example" else host, port, **more)

    monkeypatch.setattr(loop, "getaddrinfo", rebound)
    loss = await first_loss(reader("http://upstream.example/"))
    assert loss.outcome is Outcome.REFUSED


async def test_a_look_up_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And costs no budget: no upstream saw a request."""

    async def hangs_too(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hangs_too)
    budget = Budget(5, 300)
    its = manners(liveness={"connect_timeout_s": 0.2, "headers_timeout_s": 20})
    loss = await first_loss(replace(reader("http://upstream.example/", its), budget=budget))
    assert (loss.outcome, loss.is_stall) == (Outcome.NETWORK, False)
    assert budget.spent(0) == ()


async def test_a_name_that_does_not_exist_is_waited_for() -> None:
    assert (await first_loss(reader("http://nowhere.invalid/"))).outcome is Outcome.NETWORK


# Proxies


async def test_a_proxy_is_used_where_it_is_configured_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        FaultServer.of(says(OK, chunk(status(1)))) as proxy,
        FaultServer.of(says(OK, chunk(status(2)))) as server,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert ids(await take(reader(server.url), until(1))) == ["2"]
        assert proxy.connections == []
        through = reader("http://upstream.example/stream", proxy=f"http://127.0.0.1:{proxy.port}")
        assert ids(await take(through, until(1))) == ["1"]
        assert proxy.requests[0].startswith(b"GET http://upstream.example/stream?track=kafka HTTP/1.1\r\n")


async def test_a_proxy_that_refuses_is_no_upstream_that_does() -> None:
    async with FaultServer.of(says(answer(407))) as proxy:
        through = reader("https://upstream.example/", proxy=f"http://127.0.0.1:{proxy.port}")
        budget = Budget(5, 300)
        assert (await first_loss(replace(through, budget=budget))).outcome is Outcome.NETWORK
        assert budget.spent(0) == ()


# Streams that are well


@asynccontextmanager
async def in_step(head: bytes, messages: list[bytes]) -> AsyncIterator[tuple[FaultServer, asyncio.Event]]:
    """Serve each message only after the one before was received."""
    received = asyncio.Event()

    async def steps(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(head)
        for message in messages:
            await connection.send(message)
            await received.wait()
            received.clear()
        await connection.until_closed()

    async with FaultServer.of(steps) as server:
        yield server, received


async def test_a_compressed_message_arrives_when_it_was_sent() -> None:
    messages = [gzip.compress(status(number)) for number in range(1, 6)]
    head = ok("Content-Type: application/json", "Content-Encoding: gzip")
    async with in_step(head, messages) as (server, received):

        def enough(seen: list[ReaderEvent]) -> bool:
            if ids(seen[-1:]):
                received.set()
            return len(ids(seen)) == 5

        seen = await take(reader(server.url, manners(response={"compression": ["gzip"]})), enough)
        assert ids(seen) == ["1", "2", "3", "4", "5"]
        assert b"accept-encoding: gzip\r\n" in server.requests[0].lower()


async def test_events_cut_anywhere_and_resumed() -> None:
    head = ok("Content-Type: text/event-stream")
    stream = b'\xef\xbb\xbf:hi\r\n\r\nretry: 10\r\rid: a\rdata: {"id":1}\r\n\r\nid: b\ndata: {"id":2}\n\n'

    async def cut(connection: Connection) -> None:
        await connection.read_request()
        connection.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await connection.send(head)
        for byte in stream:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0)

    async with FaultServer.of(cut, says(head, b'data: {"id":3}\n\n')) as server:
        cursor: list[str | None] = [None]

        def enough(seen: list[ReaderEvent]) -> bool:
            if isinstance(seen[-1], Received):
                messages = seen[-1].messages
                now = messages.cursor_after(len(messages.statuses))
                cursor[0] = cursor[0] if now is None else now
            return len(ids(seen)) == 3

        seen = await take(reader(server.url, manners("sse"), lambda: cursor[0]), enough)
        assert ids(seen) == ["1", "2", "3"]
        assert b"\r\nlast-event-id: b\r\n" in server.requests[1].lower()


# Rubbish


def rubbish(rng: random.Random) -> bytes:
    tokens = [
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
    ]
    tokens += [
        b"Content-Length: 5\r\n",
        b"{}\n",
        status(1),
        b"\0",
        rng.randbytes(20),
        b":",
        b"Location: /\r\n",
    ]
    return b"".join(rng.choices(tokens, k=rng.randrange(1, 12)))


@pytest.mark.parametrize("prefix", [b"", OK, PLAIN], ids=["answers", "chunked bodies", "bodies"])
async def test_rubbish_ends_connections_and_nothing_else(prefix: bytes) -> None:
    rng = random.Random(20261124)
    scripts: list[Script] = [says(prefix + rubbish(rng), then_hang=False) for _ in range(150)]
    its = manners(
        liveness={"connect_timeout_s": 0.3, "headers_timeout_s": 0.3, "stall_timeout_s": 0.3},
        policy={"refused": [], "rate_limited": []},
    )
    async with FaultServer.of(*scripts) as server:
        seen = await take(reader(server.url, its), lambda seen: len(lost(seen)) == 150)
        attempts = sum(isinstance(event, Connecting) for event in seen)
        assert attempts == len(server.connections) == 150
        assert all(loss.reason for loss in lost(seen))
        assert sum(isinstance(event, Live) for event in seen) <= 150
