"""The buffer is bounded, keeps order, and forgets what a lost lease leaves behind."""

from __future__ import annotations

import asyncio

from connector.delivery.outbox import Entry, Outbox
from connector.model import Status, Tenure

HERE, THERE = Tenure(0, 1), Tenure(1, 2)


def entry(size: int, tenure: Tenure = HERE) -> Entry:
    return Entry(tenure=tenure, stream="tech", statuses=[Status("1", b"x" * size)])


async def is_waiting(task: asyncio.Task[object]) -> bool:
    """Let everything that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


async def test_readers_wait_while_it_is_over_capacity() -> None:
    outbox = Outbox(capacity_bytes=2000)
    outbox.put(entry(1000))
    await outbox.room()
    outbox.put(entry(1000))
    waiting = asyncio.create_task(outbox.room())
    assert await is_waiting(waiting)
    (first,) = outbox.take(1)
    assert await is_waiting(waiting), "taken is not written yet"
    outbox.settle([first])
    await waiting


async def test_what_comes_back_stands_first_again() -> None:
    outbox = Outbox(1 << 20)
    entries = [entry(size) for size in (1, 2, 3)]
    for one in entries:
        outbox.put(one)
    taken = outbox.take(1000)
    assert taken == entries[:2]
    outbox.put_back(taken)
    assert outbox.take(1 << 20) == entries
    assert outbox.size_bytes == sum(one.size_bytes for one in entries)
    outbox.settle(entries)
    assert outbox.size_bytes == 0


async def test_a_lost_lease_takes_its_entries_along_and_nobody_elses() -> None:
    outbox = Outbox(1000)
    mine, theirs = entry(900, HERE), entry(900, THERE)
    outbox.put(mine)
    outbox.put(theirs)
    waiting = asyncio.create_task(outbox.room())
    assert await is_waiting(waiting)
    outbox.drop(HERE)
    outbox.settle(outbox.take(1 << 20))
    await waiting
    assert outbox.size_bytes == 0


async def test_a_tenure_is_written_when_all_its_entries_are_settled() -> None:
    outbox = Outbox(1 << 20)
    await outbox.written(HERE)
    outbox.put(entry(1, HERE))
    outbox.put(entry(1, THERE))
    waiting = asyncio.create_task(outbox.written(HERE))
    first, second = outbox.take(1 << 20)
    assert await is_waiting(waiting)
    outbox.settle([second])
    assert await is_waiting(waiting)
    outbox.settle([first])
    await waiting


async def test_it_ends_when_closed_and_empty() -> None:
    outbox = Outbox(1 << 20)
    waiting = asyncio.create_task(outbox.filled())
    assert await is_waiting(waiting)
    outbox.put(entry(1))
    assert await waiting
    outbox.close()
    assert await outbox.filled(), "not empty yet"
    outbox.settle(outbox.take(1 << 20))
    assert not await outbox.filled()
