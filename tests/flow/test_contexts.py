"""TLS contexts: shared as long as the files they were made from are the same."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from connector.errors import Unreachable
from connector.stream.transport import Contexts, Tls


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def trusted(context: ssl.SSLContext) -> int:
    return context.cert_store_stats()["x509_ca"]


async def test_connections_that_begin_together_load_the_certificates_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLContext] = []
    load = Tls.context
    monkeypatch.setattr(Tls, "context", lambda tls: made.append(load(tls)) or made[-1])
    contexts = Contexts()
    got = await asyncio.gather(*(contexts.of(Tls(ca_file=file)) for _ in range(20)))
    assert len(made) == 1
    assert set(map(id, got)) == {id(made[0])}


async def test_what_proves_something_else_is_not_shared(file: Path) -> None:
    contexts = Contexts()
    ours, public = await contexts.of(Tls(ca_file=file)), await contexts.of(Tls())
    assert trusted(ours) == 1 < trusted(public)
    assert await contexts.of(Tls(ca_file=file)) is ours


async def test_a_rotated_file_is_read_by_the_next_connection(file: Path) -> None:
    contexts, tls = Contexts(), Tls(ca_file=file)
    before = await contexts.of(tls)
    trustme.CA().cert_pem.write_to_path(str(file), append=True)
    after = await contexts.of(tls)
    assert (trusted(before), trusted(after)) == (1, 2)
    assert await contexts.of(tls) is after


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Tls.context

    def slow(tls: Tls) -> ssl.SSLContext:
        context = load(tls)
        trustme.CA().cert_pem.write_to_path(str(file), append=True)
        return context

    monkeypatch.setattr(Tls, "context", slow)
    contexts, tls = Contexts(), Tls(ca_file=file)
    assert trusted(await contexts.of(tls)) == 1
    monkeypatch.setattr(Tls, "context", load)
    assert trusted(await contexts.of(tls)) == 2


async def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    contexts, tls = Contexts(), Tls(ca_file=tmp_path / "late.pem")
    with pytest.raises(Unreachable, match="no TLS"):
        await contexts.of(tls)
    trustme.CA().cert_pem.write_to_path(str(tls.ca_file))
    assert trusted(await contexts.of(tls)) == 1


async def test_who_gives_up_while_it_is_read_holds_up_nobody(file: Path) -> None:
    contexts, tls = Contexts(), Tls(ca_file=file)
    leaving = asyncio.create_task(contexts.of(tls))
    await asyncio.sleep(0)
    staying = asyncio.create_task(contexts.of(tls))
    await asyncio.sleep(0)
    leaving.cancel()
    assert trusted(await staying) == 1
    assert leaving.cancelled()
