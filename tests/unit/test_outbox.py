"""The outbox is bounded, keeps its order, and knows what is not in the log yet."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery.outbox import OVERHEAD_BYTES, Entry, Outbox
from connector.model import ControlRecord, DeadLetter, Event, Status, Tenure

ONE, TWO = Tenure(1, 1), Tenure(2, 1)
PLAIN_BYTES = Entry(tenure=ONE).size_bytes
ALL = 1 << 40


def entry(name: int = 0, tenure: Tenure = ONE, size: int = 100, stream: str | None = "tech") -> Entry:
    some = [Status(str(name), b"x" * size)]
    return Entry(tenure=tenure, stream=stream, cursor=str(name), statuses=some)


ENTRY_BYTES = entry().size_bytes


def names(entries: list[Entry]) -> list[int]:
    return [int(one.cursor or "") for one in entries]


async def settled(task: asyncio.Task[object]) -> bool:
    """Let everything run that can, and say whether *task* has ended by then."""
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


async def waits(what: Coroutine[object, object, object]) -> asyncio.Task[object]:
    """Start *what*, and see that it cannot end yet."""
    task = asyncio.ensure_future(what)
    assert not await settled(task)
    return task


async def ends(what: Coroutine[object, object, object] | asyncio.Task[object]) -> object:
    """See that *what* ends now, rather than wait for ever when it does not."""
    task = asyncio.ensure_future(what)
    assert await settled(task)
    return task.result()


# --- Weight and room ----------------------------------------------------------------------------


def test_an_entry_weighs_what_it_carries():
    plain = Entry(tenure=ONE)
    statuses = Entry(tenure=ONE, statuses=[Status("1", b"x" * 10), Status("2", b"x" * 5)])
    letters = [DeadLetter("r", "d", None, "o", None, value) for value in (b"x" * 7, None)]
    assert plain.size_bytes > 0, "an outbox of nothing but plain entries is bounded too"
    assert statuses.size_bytes == plain.size_bytes + 15 + 2 * OVERHEAD_BYTES
    assert Entry(tenure=ONE, dead_letters=letters).size_bytes == plain.size_bytes + 7
    moves = [(ControlRecord(0, 0, b"tech", value), 1) for value in (b"1234", None)]
    assert Entry(tenure=ONE, moves=moves).size_bytes == plain.size_bytes + 4
    assert Entry(tenure=ONE, events=[Event("e", None)] * 2).size_bytes > plain.size_bytes


async def test_reading_goes_on_up_to_the_capacity_and_not_beyond():
    outbox = Outbox(2 * ENTRY_BYTES)
    await ends(outbox.room("tech"))
    outbox.put(entry(1))
    outbox.put(entry(2))
    assert outbox.size_bytes == outbox.capacity_bytes
    await ends(outbox.room("tech"))
    outbox.put(entry(3))
    room = await waits(outbox.room("tech"))
    taken = outbox.take(1)
    assert not await settled(room), "what is being written still needs its memory"
    outbox.settle(taken)
    await ends(room)


async def test_taking_and_putting_back_frees_no_room():
    outbox = Outbox(100)
    outbox.put(entry(1))
    room = await waits(outbox.room("tech"))
    outbox.put_back(outbox.take(ALL))
    (await waits(outbox.room("tech"))).cancel()
    assert not await settled(room)
    outbox.settle(outbox.take(ALL))
    await ends(room)
    assert outbox.size_bytes == 0


# --- Shares -------------------------------------------------------------------------------------


async def test_one_stream_may_use_all_of_it_and_keeps_no_other_out():
    outbox = Outbox(4 * ENTRY_BYTES)
    for name in range(5):
        assert not outbox.is_full("a")
        outbox.put(entry(name, stream="a"))
    room = await waits(outbox.room("a"))
    for name in (5, 6):
        assert not outbox.is_full("b"), "it has less than its half"
        outbox.put(entry(name, stream="b"))
    assert not outbox.is_full("b"), "nor more than it"
    outbox.put(entry(7, stream="b"))
    (await waits(outbox.room("b"))).cancel()
    assert not outbox.is_full("c")
    outbox.settle(outbox.take(3 * ENTRY_BYTES))
    assert outbox.size_bytes > outbox.capacity_bytes
    await ends(room)
    assert outbox.is_full("b"), "the fuller one waits on"


async def test_who_has_no_room_yet_sleeps_on():
    """Hundreds wait when Kafka is slow: to wake all of them for each batch is most of what they cost."""
    outbox, pauses = Outbox(10 * ENTRY_BYTES), [0] * 10

    @types.coroutine
    def room(number: int) -> Generator[object, None, None]:
        for future in outbox.room(f"stream-{number}").__await__():
            pauses[number] += 1
            yield future

    for name in range(30):
        outbox.put(entry(name, stream=f"stream-{name % 10}"))
    waiting = [await waits(room(number)) for number in range(10)]
    for _ in range(19):
        outbox.settle(outbox.take(1))
        await asyncio.sleep(0)
    assert sum(task.done() for task in waiting) == 9, "they have no more than their share by now"
    outbox.settle(outbox.take(1))
    await ends(waiting[-1])
    assert pauses == [1] * 10
    await asyncio.gather(*waiting)


async def test_two_connections_of_one_stream_wait_for_the_same_room():
    outbox = Outbox(ENTRY_BYTES)
    outbox.put(entry(1))
    outbox.put(entry(2))
    first, second = [await waits(outbox.room("tech")) for _ in range(2)]
    first.cancel()
    outbox.settle(outbox.take(1))
    await ends(second)


async def test_what_belongs_to_no_stream_has_its_share_too():
    outbox = Outbox(2 * ENTRY_BYTES)
    for name in range(4):
        outbox.put(entry(name, stream=None))
    assert not outbox.is_full("a")
    outbox.put(entry(4, stream="a"))
    assert not outbox.is_full("a")
    outbox.put(entry(5, stream="a"))
    assert outbox.is_full("a")
    outbox.settle(outbox.take(4 * ENTRY_BYTES))
    assert not outbox.is_full("a"), "what is settled has no share any more"


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "settle", "put back", "drop"]), st.sampled_from("abc")), max_size=60
    )
)
def test_it_never_holds_twice_its_capacity(steps):
    """As long as each puts no more before it looks for room again."""
    outbox = Outbox(4 * ENTRY_BYTES)
    for step, stream in steps:
        if step == "put" and not outbox.is_full(stream):
            outbox.put(entry(stream=stream))
        elif step == "settle":
            outbox.settle(outbox.take(1))
        elif step == "put back":
            outbox.put_back(outbox.take(3 * ENTRY_BYTES, 2))
        elif step == "drop" and stream == "a":
            outbox.drop(ONE)
        assert outbox.size_bytes <= 2 * outbox.capacity_bytes + ENTRY_BYTES
        if outbox.size_bytes <= outbox.capacity_bytes:
            assert not any(map(outbox.is_full, "abc"))
    outbox.settle(outbox.take(ALL))
    assert outbox.size_bytes == 0
    assert not outbox._held


# --- Order --------------------------------------------------------------------------------------


def test_entries_leave_in_the_order_they_came():
    outbox = Outbox(ALL)
    for name in range(5):
        outbox.put(entry(name))
    assert names(outbox.take(ALL)) == [0, 1, 2, 3, 4]
    assert outbox.take(ALL) == []


def test_a_take_ends_with_the_entry_that_reaches_the_limit():
    outbox = Outbox(ALL)
    for name in range(5):
        outbox.put(entry(name))
    size = entry().size_bytes
    assert names(outbox.take(1)) == [0]
    assert names(outbox.take(size + 1)) == [1, 2]
    assert names(outbox.take(2 * size)) == [3, 4]


def test_what_is_put_back_comes_first_and_in_order():
    outbox = Outbox(ALL)
    for name in range(4):
        outbox.put(entry(name))
    taken = outbox.take(2 * entry().size_bytes)
    outbox.put(entry(4))
    outbox.put_back(taken)
    assert names(outbox.take(ALL)) == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from(["put", "settle", "put back"]), max_size=40), st.integers(1, 2000))
def test_every_entry_is_settled_once_and_in_order_whatever_failed(steps, limit_bytes):
    outbox = Outbox(5000)
    put, settled = 0, list[int]()
    for step in [*steps, *["settle"] * len(steps)]:
        if step == "put":
            outbox.put(entry(put, size=put % 7))
            put += 1
        elif step == "put back":
            outbox.put_back(outbox.take(limit_bytes))
        else:
            taken = outbox.take(limit_bytes)
            settled += names(taken)
            outbox.settle(taken)
    assert settled == list(range(put))
    assert outbox.size_bytes == 0


# --- In small portions --------------------------------------------------------------------------


def many(first: int, count: int, **more: object) -> Entry:
    statuses = [Status(str(number), b"x") for number in range(first, first + count)]
    return Entry(tenure=ONE, stream="tech", statuses=statuses, **more)


def ids(entries: list[Entry]) -> list[int]:
    return [int(status.id) for one in entries for status in one.statuses]


def test_no_more_statuses_are_taken_than_asked_for():
    outbox = Outbox(ALL)
    outbox.put(many(0, 2))
    outbox.put(many(2, 5))
    taken = outbox.take(ALL, 4)
    assert [len(one.statuses) for one in taken] == [2, 2]
    assert ids(taken) == [0, 1, 2, 3]
    assert ids(outbox.take(ALL)) == [4, 5, 6]


def test_an_entry_without_statuses_comes_alone_where_portions_are_small():
    outbox = Outbox(ALL)
    event = Entry(tenure=ONE, stream="tech", events=[Event("e", "tech")])
    for one in (many(0, 1), event, event, many(1, 1)):
        outbox.put(one)
    taken = [outbox.take(ALL, 1) for _ in range(5)]
    assert taken == [[many(0, 1)], [event], [event], [many(1, 1)], []]
    for one in reversed(taken):
        outbox.put_back(one)
    taken = [outbox.take(ALL, 3) for _ in range(4)]
    assert taken == [[many(0, 1)], [event], [event, many(1, 1)], []], "or before others"


async def test_what_is_taken_in_parts_is_written_when_all_of_it_is():
    outbox = Outbox(ALL)
    outbox.put(many(0, 3, cursor="c"))
    first = outbox.take(ALL, 1)
    written = await waits(outbox.written(ONE))
    outbox.settle(first)
    assert not await settled(written)
    outbox.settle(outbox.take(ALL))
    await ends(written)
    assert outbox.size_bytes == 0


async def test_what_takes_an_entrys_place_comes_first_and_is_waited_for():
    outbox = Outbox(ALL)
    for name in range(3):
        outbox.put(entry(name))
    (taken,) = outbox.take(1)
    written = await waits(outbox.written(ONE))
    outbox.replace(taken, entry(9, size=5))
    assert outbox.size_bytes == 3 * ENTRY_BYTES - 95
    assert not await settled(written)
    left = outbox.take(ALL)
    assert names(left) == [9, 1, 2]
    outbox.settle(left)
    await ends(written)


@given(
    st.lists(st.integers(0, 6), max_size=8),
    st.lists(st.tuples(st.booleans(), st.none() | st.integers(1, 7)), max_size=20),
)
def test_in_whatever_portions_all_of_it_leaves_once_and_in_order(counts, portions):
    outbox = Outbox(ALL)
    for at, count in enumerate(counts):
        outbox.put(many(sum(counts[:at]), count))
    gone: list[int] = []
    for is_written, most in [*portions, *[(True, 1)] * (sum(counts) + len(counts))]:
        taken = outbox.take(1 << 10, most)
        if is_written:
            gone += ids(taken)
            outbox.settle(taken)
        else:
            outbox.put_back(taken)
    assert gone == list(range(sum(counts)))
    assert outbox.size_bytes == 0
    assert not outbox._held
    assert not outbox._unsettled[ONE]


# --- Loss of a lease ----------------------------------------------------------------------------


async def test_dropping_forgets_one_tenure_alone_and_frees_its_room():
    outbox = Outbox(4 * ENTRY_BYTES - 1)
    for name in range(4):
        outbox.put(entry(name, TWO if name % 2 else ONE))
    room = await waits(outbox.room("tech"))
    outbox.drop(ONE)
    await ends(room)
    assert outbox.size_bytes == 2 * ENTRY_BYTES
    assert names(outbox.take(ALL)) == [1, 3]


async def test_a_partition_that_came_back_is_another_tenure():
    outbox = Outbox(ALL)
    outbox.put(entry(1, Tenure(1, 1)))
    outbox.put(entry(2, Tenure(1, 2)))
    outbox.drop(Tenure(1, 1))
    await ends(outbox.written(Tenure(1, 1)))
    assert names(outbox.take(ALL)) == [2]


def test_dropping_what_holds_nothing_changes_nothing():
    outbox = Outbox(ALL)
    outbox.put(entry(1))
    outbox.drop(TWO)
    assert names(outbox.take(ALL)) == [1]


# --- Waiting for the log ------------------------------------------------------------------------


async def test_written_waits_for_all_entries_of_its_tenure_alone():
    outbox = Outbox(ALL)
    for name, tenure in enumerate([ONE, TWO, ONE]):
        outbox.put(entry(name, tenure))
    written = await waits(outbox.written(ONE))
    other = await waits(outbox.written(TWO))
    first, second, third = outbox.take(ALL)
    outbox.settle([first])
    assert not await settled(written)
    outbox.settle([third])
    await ends(written)
    assert not other.done()
    outbox.settle([second])
    await ends(other)


async def test_written_returns_at_once_when_nothing_waits():
    await ends(Outbox(ALL).written(ONE))


async def test_several_may_wait_for_the_same_tenure():
    outbox = Outbox(ALL)
    outbox.put(entry())
    both = [await waits(outbox.written(ONE)) for _ in range(2)]
    outbox.settle(outbox.take(ALL))
    for one in both:
        await ends(one)


async def test_what_was_dropped_is_waited_for_no_longer_but_what_is_being_written_is():
    outbox = Outbox(ALL)
    outbox.put(entry(1))
    outbox.put(entry(2))
    taken = outbox.take(1)
    written = await waits(outbox.written(ONE))
    outbox.drop(ONE)
    assert not await settled(written)
    outbox.settle(taken)
    await ends(written)


# --- The writer's side --------------------------------------------------------------------------


async def test_the_writer_sleeps_until_something_is_put():
    outbox = Outbox(ALL)
    filled = await waits(outbox.filled())
    outbox.put(entry())
    assert await ends(filled) is True
    assert await ends(outbox.filled()) is True
    outbox.take(ALL)
    (await waits(outbox.filled())).cancel()


async def test_the_writer_is_woken_by_what_is_put_back():
    outbox = Outbox(ALL)
    outbox.put(entry())
    taken = outbox.take(ALL)
    filled = await waits(outbox.filled())
    outbox.put_back(taken)
    assert await ends(filled) is True


async def test_a_closed_outbox_is_emptied_before_the_writer_ends():
    outbox = Outbox(ALL)
    outbox.put(entry())
    outbox.close()
    assert await ends(outbox.filled()) is True
    outbox.take(ALL)
    assert await ends(outbox.filled()) is False


@pytest.mark.parametrize("waiters", [1, 3])
async def test_closing_wakes_whoever_waits(waiters):
    outbox = Outbox(ALL)
    filled = [await waits(outbox.filled()) for _ in range(waiters)]
    outbox.close()
    assert [await ends(one) for one in filled] == [False] * waiters
