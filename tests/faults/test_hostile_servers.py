"""The reader against more of what goes wrong: slow consumers, proxies, rotated files, hostile headers."""

from __future__ import annotations

import asyncio
import random
import ssl
import zlib
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trustme
from fault_server import OK, PLAIN, Connection, FaultServer, Script, answer, chunk, hangs, ok, says, status
from reading import PATIENCE_S, SOON, first_loss, ids, lost, manners, reader, take, until

from connector.stream.budget import Budget
from connector.stream.credentials import Bearer
from connector.stream.inflate import zstd
from connector.stream.policy import Outcome
from connector.stream.reader import Connected, Connecting, Reader, ReaderEvent, Received
from connector.stream.transport import Tls

MIB = 1 << 20


def many(count: int) -> bytes:
    return b"".join(b'{"id":%d,"x":"%s"}\n' % (number, b"x" * 300) for number in range(count))


# A consumer that is slow


async def test_a_slow_consumer_still_gets_what_came_before_a_break() -> None:
    """The bytes were acknowledged to the server long before."""

    async def breaks(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(OK, chunk(many(300)))
        connection.writer.write_eof()  # and no last chunk
        await connection.until_closed()

    async with (
        asyncio.timeout(PATIENCE_S),
        FaultServer.of(breaks) as server,
        aclosing(reader(server.url).events()) as events,
    ):
        got: list[str] = []
        async for event in events:
            got += ids([event])
            if isinstance(event, Received):
                await server.connections[0].gone()
            if lost([event]):
                break
        assert len(got) == 300


async def test_a_consumer_slower_than_the_stall_still_gets_what_came() -> None:
    its = manners(liveness={"stall_timeout_s": 0.2})
    async with (
        asyncio.timeout(PATIENCE_S),
        FaultServer.of(says(OK + chunk(many(10)))) as server,
        aclosing(reader(server.url, its).events()) as events,
    ):
        got: list[str] = []
        async for event in events:
            got += ids([event])
            if isinstance(event, Connected):
                await asyncio.sleep(1)
            if lost([event]):
                break
        assert len(got) == 10


async def test_a_pause_of_the_consumer_is_no_stall_of_the_server() -> None:
    """Which cannot send, because its peer does not read."""

    its = manners(liveness={"stall_timeout_s": 3})
    async with (
        asyncio.timeout(PATIENCE_S),
        FaultServer.of(says(PLAIN, *[many(1000)] * 40)) as server,
        aclosing(reader(server.url, its).events()) as events,
    ):
        count = 0
        async for event in events:
            assert not lost([event])
            if count == 0 and ids([event]):
                await asyncio.sleep(4)
            count += len(ids([event]))
            if count == 40_000:
                break


async def test_an_answer_may_take_longer_than_a_stall() -> None:
    """Its limit is headers_timeout_s: a stall is silence within the body."""

    async def late(connection: Connection) -> None:
        await connection.read_request()
        await asyncio.sleep(1)
        await connection.send(OK + chunk(status(1)))
        await connection.until_closed()

    its = manners(liveness={"headers_timeout_s": 20, "stall_timeout_s": 0.3})
    async with FaultServer.of(late, says(OK + chunk(status(2)))) as server:
        assert ids(await take(reader(server.url, its), until(1))) == ["1"]


# TLS


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.cert_pem.bytes())
    return file


def serving(authority: trustme.CA, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_without_the_certificate_asked_for(version, authority: trustme.CA, ca: Path) -> None:
    tls = serving(authority, clients=trustme.CA())
    tls.maximum_version = version
    async with FaultServer.of(hangs, tls=tls) as server:
        loss = await first_loss(reader(server.url, tls=Tls(ca_file=ca)))
    assert loss.outcome is Outcome.NETWORK
    assert not loss.is_stall
    assert all(request == b"" for request in server.requests)


async def test_a_client_certificate_with_its_key_in_a_file_of_its_own(
    authority: trustme.CA, ca: Path, tmp_path: Path
) -> None:
    clients = trustme.CA()
    mine = clients.issue_cert("me@example.com")
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "me.pem"))
    mine.private_key_pem.write_to_path(str(tmp_path / "me.key"))
    tls = Tls(ca_file=ca, certificate_file=tmp_path / "me.pem", key_file=tmp_path / "me.key")
    async with FaultServer.of(says(OK, chunk(status(1))), tls=serving(authority, clients)) as server:
        assert not lost(await take(reader(server.url, tls=tls), until(1)))


async def test_a_rotated_authority_is_used_at_the_next_connection(authority: trustme.CA, ca: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(ca))

    def enough(seen: list[ReaderEvent]) -> bool:
        if len(lost(seen)) == 2:
            authority.cert_pem.write_to_path(str(ca))
        return bool(ids(seen))

    # A connection whose handshake fails never reaches a script.
    async with FaultServer.of(says(OK, chunk(status(1))), tls=serving(authority)) as server:
        seen = await take(reader(server.url, tls=Tls(ca_file=ca)), enough)
    assert len(lost(seen)) == 2


# Heads without end


async def until_it_leaves(connection: Connection, more: bytes) -> None:
    while True:
        await connection.send(more)


@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"HTTP/1.1 ", b"2" * MIB),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a" * MIB),
        (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n" * 100_000),
        (OK + b"0\r\n", b"X: a\r\n" * 100_000),
        (OK + b"0\r\nX: ", b"a" * MIB),
    ],
    ids=["status line", "header", "headers", "trailers", "trailer"],
)
async def test_a_head_without_end_is_hung_up_on(head: bytes, more: bytes) -> None:
    """By the client alone: this server would go on for ever."""

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(head)
        await until_it_leaves(connection, more)

    async with FaultServer.of(script) as server:
        loss = await first_loss(reader(server.url))
        await server.connections[0].gone()
    assert loss.outcome is Outcome.NETWORK
    assert not loss.is_stall
    assert 0 < len(loss.reason) <= 300


async def test_promises_to_answer_are_no_answer() -> None:
    async def promises(connection: Connection) -> None:
        await connection.read_request()
        while True:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.02)

    its = manners(liveness={"connect_timeout_s": 0.2, "headers_timeout_s": 0.4})
    async with FaultServer.of(promises) as server:
        loss = await first_loss(reader(server.url, its))
        assert loss.is_stall
        assert "no answer within" in loss.reason
        await server.connections[0].gone()


async def test_an_error_page_without_end_is_not_read_to_it() -> None:
    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(b"HTTP/1.1 503 X\r\n\r\n")
        await until_it_leaves(connection, b"busy " * 20_000)

    async with FaultServer.of(script) as server:
        loss = await first_loss(reader(server.url))
        await server.connections[0].gone()
    assert (loss.outcome, loss.code) == (Outcome.HTTP, "503")
    assert "busy" in loss.reason
    assert len(loss.reason) < 300


@pytest.mark.parametrize(
    "coding", ["x-gzip", "gzip, gzip", "br", "\xff", "x-identity", "x-deflate", "x-zstd"]
)
async def test_whatever_the_coding_claims_to_be(coding: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n\r\n".encode("latin-1")
    its = manners(response={"compression": ["gzip", "deflate", "zstd"]})
    async with FaultServer.of(says(head, b"{}\n{}\n")) as server:
        assert (await first_loss(reader(server.url, its))).outcome in {Outcome.HTTP, Outcome.NETWORK}


@pytest.mark.parametrize(
    "wait",
    [
        "nan",
        "inf",
        "-1",
        "1e400",
        "9" * 5000,
        "Tue, 01 Jan 99999 00:00:00 GMT",
        "1 Jan 1 0:0:0 +2359",
        "\xff",
    ],
)
async def test_whatever_the_wait_is_that_an_answer_asks_for(wait: str) -> None:
    head = f"HTTP/1.1 429 X\r\nRetry-After: {wait}\r\nX-Rate-Limit-Reset: {wait}\r\n\r\n".encode("latin-1")
    async with FaultServer.of(says(head, then_hang=False)) as server:
        loss = await first_loss(reader(server.url))
    assert loss.outcome is Outcome.RATE_LIMITED
    assert 0 <= loss.retry_in_s <= 86_400


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("401 Acc\xe8s refus\xe9", Outcome.REFUSED),
        ("429 Trop de requ\xeates", Outcome.RATE_LIMITED),
        ("503 Indisponibilit\xe9", Outcome.HTTP),
        ("503", Outcome.HTTP),
    ],
)
async def test_a_status_counts_whatever_is_said_of_it(line: str, outcome: Outcome) -> None:
    """Servers with a taste for Latin-1 say it in that."""
    head = f"HTTP/1.1 {line}\r\nRetry-After: 900\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    async with FaultServer.of(says(head)) as server:
        loss = await first_loss(reader(server.url))
        assert (loss.outcome, loss.retry_in_s) == (outcome, 900)


async def test_a_200_counts_whatever_is_said_of_it() -> None:
    head = "HTTP/1.1 200 r\xe9ussi\r\nConnection: close\r\n\r\n".encode("latin-1")
    async with FaultServer.of(says(head, status(1))) as server:
        assert lost(await take(reader(server.url), until(1))) == []


async def test_an_upstreams_own_407_is_a_request_that_was_seen() -> None:
    budget = Budget(5, 300)
    async with FaultServer.of(says(answer(407))) as server:
        loss = await first_loss(replace(reader(server.url), budget=budget))
        assert loss.outcome is Outcome.HTTP
        assert len(budget.spent(0)) == 1


# Redirects


async def test_a_redirect_never_leaves_tls(authority: trustme.CA, ca: Path) -> None:
    async with FaultServer.of() as plain:
        away = says(answer(302, f"Location: {plain.url}"))
        async with FaultServer.of(away, tls=serving(authority)) as server:
            source = reader(server.url, credentials=Bearer(lambda: "secret"), tls=Tls(ca_file=ca))
            assert "is not followed" in (await first_loss(source)).reason
        assert plain.connections == []


async def test_a_redirect_without_tls_is_not_followed() -> None:
    async with FaultServer.of(says(answer(307, "Location: /other"))) as server:
        loss = await first_loss(reader(server.url))
        assert "is not followed" in loss.reason
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "//",
        "https://",
        "https://[v1.x]/",
        "https://h:99999/",
        "https://a\x7fb/",
        "https://\xe2\x84\x80.com/",
        "javascript:x",
        "https://xn--/",
    ],
)
async def test_whatever_a_redirect_leads_to(location: str) -> None:
    head = f"HTTP/1.1 302 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    async with FaultServer.of(says(head)) as server:
        assert (await first_loss(reader(server.url))).outcome in {Outcome.HTTP, Outcome.NETWORK}
        assert len(server.connections) == 1


# Closing


async def closed_when(source: Reader, told: asyncio.Event, server: FaultServer) -> None:
    """Cancel who reads *source* once *told*, and wait until the server sees the socket closed."""

    async def read() -> None:
        async with aclosing(source.events()) as events:
            async for _ in events:
                pass

    reading = asyncio.create_task(read())
    async with asyncio.timeout(PATIENCE_S):
        await told.wait()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    await server.connections[0].gone()


async def test_closing_while_connecting() -> None:
    """In the middle of a TLS handshake, that is: the server has the first message of it."""
    told = asyncio.Event()

    async def mute(connection: Connection) -> None:
        assert await connection.reader.read(1) == b"\x16"
        told.set()
        await connection.until_closed()

    async with FaultServer.of(mute) as server:
        await closed_when(reader(server.url.replace("http:", "https:")), told, server)


async def test_closing_in_the_middle_of_a_stream_over_tls(authority: trustme.CA, ca: Path) -> None:
    told = asyncio.Event()

    async def streams(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(OK, chunk(status(1)))
        told.set()
        await connection.until_closed()

    async with FaultServer.of(streams, tls=serving(authority)) as server:
        await closed_when(reader(server.url, tls=Tls(ca_file=ca)), told, server)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_closing_with_unread_bytes_piled_up(is_tls: bool, authority: trustme.CA, ca: Path) -> None:
    """More than all buffers on the way hold: the server waits, and must not wait for ever."""

    async def floods(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(PLAIN)
        await until_it_leaves(connection, many(1000))

    tls = serving(authority) if is_tls else None
    async with FaultServer.of(floods, tls=tls) as server:
        source = reader(server.url, tls=Tls(ca_file=ca))
        async with asyncio.timeout(PATIENCE_S), aclosing(source.events()) as events:
            async for event in events:
                if ids([event]):
                    break
            await asyncio.sleep(0.2)  # for the pile; the less of it, the easier the test is passed
            assert not server.connections[0].closed.is_set()
        await server.connections[0].gone()


async def test_the_old_socket_is_closed_before_the_next_attempt() -> None:
    """Where one connection is all there may be, a second would be refused."""

    async def alone(connection: Connection) -> None:
        assert all(before.closed.is_set() for before in server.connections[:-1])
        await connection.read_request()
        await connection.send(OK, chunk(status(len(server.connections))), b"0\r\n\r\n")
        await connection.until_closed()

    async def ends(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(answer(503))
        await connection.until_closed()

    async with FaultServer.of(alone, ends, alone, alone) as server:
        assert ids(await take(reader(server.url), until(3))) == ["1", "3", "4"]


# Addresses


@pytest.mark.parametrize(
    "host", ["[fe80::1%25lo]", "0xa9fea9fe", "[::ffff:a9fe:a9fe]", "168.63.129.16", "[fd00:ec2::254]"]
)
async def test_metadata_addresses_however_written(host: str) -> None:
    loss = await first_loss(reader(f"http://{host}/"))
    assert loss.outcome is Outcome.REFUSED
    assert "allow_link_local" in loss.reason


async def test_a_name_that_leads_to_both_kinds_leads_to_the_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def both(host, port, **more):
        if host != "upstream.example":
            return await look_up(host, port, **more)
        return [
            found for one in ("169.254.169.254", "127.0.0.1") for found in await look_up(one, port, **more)
        ]

    monkeypatch.setattr(loop, "getaddrinfo", both)
    async with FaultServer.of(says(OK, chunk(status(1)))) as server:
        seen = await take(reader(server.url.replace("127.0.0.1", "upstream.example")), until(1))
    assert not lost(seen)


async def test_they_are_asked_where_that_is_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    its = manners(liveness={"connect_timeout_s": 0.2, "headers_timeout_s": 0.2})
    for host in ("169.254.1.1", "[fe80::1]"):
        loss = await first_loss(reader(f"http://{host}:9/", its, allow_link_local=True))
        assert "allow_link_local" not in loss.reason  # whatever else this network makes of it


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_names_that_are_none(host: str) -> None:
    assert (await first_loss(reader(f"http://{host}/"))).outcome is Outcome.NETWORK


# Proxies


@dataclass
class Proxy:
    """Tunnels each connection to where it is asked to, as CONNECT has it.

    Attributes:
        asked: the head of each request.
    """

    asked: list[bytes] = field(default_factory=list)

    async def __call__(self, connection: Connection) -> None:
        await connection.read_request()
        self.asked.append(connection.request)
        host, _, port = connection.request.split(b" ")[1].decode().rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as group:
                back = group.create_task(pump(reader, connection.writer))
                await pump(connection.reader, writer)
                back.cancel()
        finally:
            writer.transport.abort()


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()


# Both are httpx-aiohttp's; neither is there any more in aiohttp 4.
@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The 'proxy_auth' parameter is deprecated:DeprecationWarning")
async def test_a_proxy_learns_the_address_and_nothing_else(authority: trustme.CA, ca: Path) -> None:
    proxy = Proxy()
    async with (
        FaultServer.of(says(OK, chunk(status(1))), tls=serving(authority)) as server,
        FaultServer.of(proxy) as between,
    ):
        through = reader(
            server.url,
            tls=Tls(ca_file=ca),
            credentials=Bearer(lambda: "secret"),
            proxy=f"http://me:password@127.0.0.1:{between.port}",
        )
        assert ids(await take(through, until(1))) == ["1"]
        (asked,) = proxy.asked
        assert asked.startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n".encode())
        assert b"Proxy-Authorization: Basic bWU6cGFzc3dvcmQ=\r\n" in asked
        assert b"secret" not in asked
        assert b"kafka" not in asked
        assert b"Bearer secret" in server.requests[0]
        assert b"proxy-authorization" not in server.requests[0].lower()
        await server.connections[0].gone()


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        ESTABLISHED,
        ESTABLISHED + b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\n\n",
        b"HTTP/1.1 200",
        answer(502),
        answer(302, "Location: https://elsewhere.example/"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    ],
    ids=["nothing", "a hangup", "no TLS", "rubbish", "half a line", "502", "a redirect", "a body"],
)
async def test_whatever_a_proxy_says(said: bytes) -> None:
    async with FaultServer.of(says(said, then_hang=False)) as between:
        through = reader("https://upstream.example/", proxy=f"http://127.0.0.1:{between.port}")
        loss = await first_loss(through)
    assert loss.outcome is Outcome.NETWORK
    assert loss.reason


async def test_a_netrc_of_the_users_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login me password secret\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    async with FaultServer.of(says(OK, chunk(status(1)))) as server:
        await take(reader(server.url), until(1))
    assert b"authorization" not in server.requests[0].lower()


# Streams that are well, but come in pieces


def acknowledged(head: bytes, pieces: list[bytes]) -> tuple[Script, Callable[[ReaderEvent], None]]:
    """Return a script that sends each piece after the one before was received, and what tells it that."""
    received = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(head)
        for piece in pieces:
            await connection.send(piece)
            await received.wait()
            received.clear()

    def tell(event: ReaderEvent) -> None:
        if isinstance(event, Received):
            received.set()

    return script, tell


def flushed(messages: list[bytes]) -> list[bytes]:
    """Return one gzip member, flushed after each message."""
    deflate = zlib.compressobj(wbits=31)
    return [deflate.compress(one) + deflate.flush(zlib.Z_SYNC_FLUSH) for one in messages]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_flushed_message_is_not_held_back(coding: str) -> None:
    messages = [status(number) for number in range(1, 6)]
    pieces = flushed(messages) if coding == "gzip" else [zstd.compress(one) for one in messages]
    script, tell = acknowledged(ok(f"Content-Encoding: {coding}"), pieces)
    sizes: list[int] = []

    def enough(seen: list[ReaderEvent]) -> bool:
        if isinstance(seen[-1], Received):
            sizes.append(len(ids(seen[-1:])))
        tell(seen[-1])
        return len(ids(seen)) == 5

    async with FaultServer.of(script) as server:
        await take(reader(server.url, manners(response={"compression": [coding]})), enough)
    assert sizes == [1, 1, 1, 1, 1]


async def test_events_cut_at_every_byte_and_a_wait_that_the_server_asks_for() -> None:
    """Each byte is a chunk of its own: the next is sent when it was received."""
    stream = b':hi\r\n\r\nretry: 300\r\rid: a\rdata: {"id":1}\r\n\r\n'
    stream += b'id: b\ndata: {"id":\ndata: 2}\n\nid: c\ndata: {'
    head = ok("Content-Type: text/event-stream")
    script, tell = acknowledged(head, [bytes([byte]) for byte in stream])
    cursor: list[str | None] = [None]

    def enough(seen: list[ReaderEvent]) -> bool:
        tell(seen[-1])
        if isinstance(seen[-1], Received):
            now = seen[-1].messages.cursor_after(len(seen[-1].messages.statuses))
            cursor[0] = cursor[0] if now is None else now
        return len(ids(seen)) == 3

    its = manners("sse", backoff={"network": SOON, "http": {**SOON, "cap_s": 5}, "rate_limited": SOON})
    async with FaultServer.of(script, says(head, b'data: {"id":3}\n\n')) as server:
        seen = await take(reader(server.url, its, lambda: cursor[0]), enough)
    assert ids(seen) == ["1", "2", "3"]
    assert [loss.retry_in_s for loss in lost(seen)] == [0.3]
    assert b"\r\nlast-event-id: b\r\n" in server.requests[1].lower()


@pytest.mark.parametrize("mark", [b"k\xc3\xa4fer", b"\xff", b"a\tb", b"\x01", b"\x7f", b"\x1f"])
async def test_whatever_an_events_id_is(mark: bytes) -> None:
    """It becomes a header of the next request."""
    head = ok("Content-Type: text/event-stream")
    cursor: list[str | None] = [None]

    def enough(seen: list[ReaderEvent]) -> bool:
        if isinstance(seen[-1], Received):
            cursor[0] = seen[-1].messages.cursor_after(len(seen[-1].messages.statuses)) or cursor[0]
        return len(ids(seen)) == 2

    async with FaultServer.of(
        says(head, b"id: " + mark + b'\ndata: {"id":1}\n\n', then_hang=False),
        says(head, b'data: {"id":2}\n\n'),
    ) as server:
        assert ids(await take(reader(server.url, manners("sse"), lambda: cursor[0]), enough)) == ["1", "2"]


# Rubbish


def mutated(rng: random.Random) -> bytes:
    """Return an answer that was good until bytes of it were changed, dropped or repeated."""
    body = chunk(status(1) + b"\r\n") + chunk(b'{"id":2,"x":[1,2,{}]}\n') + b"0\r\n\r\n"
    data = bytearray(rng.choice([OK + body, PLAIN + status(1) * 3, ok("Content-Length: 9") + status(1)]))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 8)]
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 30)]
    return bytes(data)


def blobs(kind: str) -> Iterator[bytes]:
    rng = random.Random(20261124)
    for _ in range(200):
        match kind:
            case "bodies":
                yield rng.choice([OK, PLAIN, ok("Content-Length: 500")]) + rng.randbytes(rng.randrange(1000))
            case "compressed bodies":
                yield ok(f"Content-Encoding: {rng.choice(['gzip', 'deflate', 'zstd'])}") + rng.randbytes(300)
            case "answers":
                yield rng.randbytes(rng.randrange(1000))
            case _:
                yield mutated(rng)


@pytest.mark.parametrize(
    "kind",
    [
        "bodies",
        "compressed bodies",
        "answers",
        "mutants",
    ],
)
async def test_random_bytes_end_connections_and_nothing_else(kind: str, ca: Path) -> None:
    its = manners(
        policy={"refused": [], "rate_limited": []},
        response={"compression": ["gzip", "deflate", "zstd"]},
    )
    scripts = [says(blob, then_hang=False) for blob in blobs(kind)]
    async with FaultServer.of(*scripts) as server:
        source = replace(reader(server.url, its, tls=Tls(ca_file=ca)), budget=Budget(1000, 1))
        seen = await take(source, lambda seen: len(lost(seen)) == 200)
    assert sum(isinstance(event, Connecting) for event in seen) == len(server.connections) == 200
    assert all(loss.reason and loss.outcome in {Outcome.NETWORK, Outcome.HTTP} for loss in lost(seen))
