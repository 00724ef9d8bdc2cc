"""The writer's reactions: each entry is in the log once, in order, whatever the log does. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest
from confluent_kafka import KafkaError, KafkaException

from connector.delivery.batch import Batch
from connector.delivery.outbox import Entry, Outbox
from connector.delivery.poison import REASON
from connector.delivery.producing import produce
from connector.delivery.records import Record
from connector.delivery.restore import Restored
from connector.delivery.verdict import Call, Verdict
from connector.delivery.writer import Committed, Condemned, Failed, Recovered, Unrecovered, Writer
from connector.model import Grant, Status, Tenure, Topics

ONE, LOST = Tenure(0, 1), Tenure(1, 1)
TOPICS = Topics(predicates="p", statuses="s", positions="pos", events="e", dlq="d")


def failure(code: int, **flags: bool) -> KafkaException:
    return KafkaException(KafkaError(code, "so it is", **flags))


class Log:
    """A log that fails as told.

    Attributes:
        refuse: says why a batch is refused, or None.
        failures: what the next attempts meet: an error, and whether the batch is in all the same.
    """

    def __init__(self, refuse: Callable[[Batch], KafkaException | None] = lambda _: None) -> None:
        self.refuse = refuse
        self.failures: list[tuple[KafkaException, bool]] = []
        self.records: list[Record] = []
        self.during = Call.COMMIT
        self.opened = self.attempts = self.unreachable = 0
        self._in = False
        self.closed = False

    def open(self) -> None:
        self.opened += 1
        if self.unreachable:
            self.unreachable -= 1
            raise failure(KafkaError._TRANSPORT)

    def write(self, batch: Batch) -> None:
        self.attempts += 1
        self.during = Call.COMMIT
        if self.failures:
            error, self._in = self.failures.pop(0)
        else:
            self.during = Call.SEND_OFFSETS  # where librdkafka tells of a refused record
            error, self._in = self.refuse(batch), False
        if error is None or self._in:
            self.records += batch.content(TOPICS, "/connector/r")
        if error is not None:
            raise error

    def has(self, batch: Batch) -> bool:
        return self._in

    def close(self) -> None:
        self.closed = True

    def ids(self) -> list[str]:
        return [record.key for record in self.records if record.topic == "s"]

    def seqs(self) -> list[int]:
        return [int(dict(record.headers)["seq"]) for record in self.records if record.topic == "s"]


class Owner:
    grant = Grant(frozenset({ONE}), b"proof")

    async def changed(self) -> None:
        raise AssertionError("there is proof")


async def written(log: Log, *entries: Entry) -> list:
    """Write all of *entries*, and return the outcomes."""
    writer, outbox = Writer(log=log, commit_interval_s=0), Outbox(1 << 30)
    writer.adopt(ONE, Restored())
    for entry in entries:
        outbox.put(entry)
    outbox.close()
    async with aclosing(writer.run(outbox, Owner())) as outcomes:
        found = [outcome async for outcome in outcomes]
    assert outbox.size_bytes == 0
    await writer.close()
    assert log.closed
    return found


def entry(first: int, count: int = 1, tenure: Tenure = ONE, body: bytes = b"x") -> Entry:
    statuses = [Status(str(number), body) for number in range(first, first + count)]
    return Entry(tenure=tenure, stream="tech", statuses=statuses)


PAUSED = {Verdict.RETRY, Verdict.FENCED, Verdict.FATAL}


@pytest.mark.looptime(idle_timeout=1)
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (KafkaError.TRANSACTION_ABORTABLE, Verdict.UNKNOWN),
        (KafkaError._TIMED_OUT, Verdict.UNKNOWN),
        (KafkaError._FENCED, Verdict.FENCED),
        (KafkaError.ILLEGAL_GENERATION, Verdict.FENCED),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Verdict.FATAL),
    ],
)
async def test_whatever_fails_the_log_is_asked_and_the_rest_goes_on(code, verdict, looptime):
    log = Log()
    log.failures = [(failure(code), False)]
    outcomes = await written(log, entry(1, 3))
    assert [type(one) for one in outcomes] == [Failed, Recovered, Committed]
    assert (outcomes[0].verdict, outcomes[1].was_committed) == (verdict, False)
    assert log.ids() == ["1", "2", "3"]
    assert log.opened == 1, "a new producer"
    assert (asyncio.get_running_loop().time() > 0.4) == (verdict in PAUSED)


async def test_what_is_in_the_log_all_the_same_is_not_written_again():
    log = Log()
    log.failures = [(failure(KafkaError._TIMED_OUT), True)]
    outcomes = await written(log, entry(1, 3))
    assert [type(one) for one in outcomes] == [Failed, Recovered, Committed]
    assert log.ids() == ["1", "2", "3"]
    assert log.attempts == 1


@pytest.mark.looptime(idle_timeout=1)
async def test_kafka_may_be_away_for_long(looptime):
    log = Log()
    log.failures, log.unreachable = [(failure(KafkaError._TIMED_OUT), False)], 100
    outcomes = await written(log, entry(1))
    assert [type(one) for one in outcomes] == [Failed, *[Unrecovered] * 100, Recovered, Committed]
    assert {one.verdict for one in outcomes[1:101]} == {Verdict.RETRY}
    assert log.ids() == ["1"]
    assert log.opened == 101
    assert 50 < asyncio.get_running_loop().time() < 100, "a pause between attempts"


def too_large(*bad: str) -> Callable[[Batch], KafkaException | None]:
    def refuse(batch: Batch) -> KafkaException | None:
        ids = {status.id for one in batch.entries for status in one.statuses}
        return failure(KafkaError.MSG_SIZE_TOO_LARGE) if ids & set(bad) else None

    return refuse


@pytest.mark.parametrize("bad", [("0",), ("1234",), ("4999",), ("17", "18", "3000")])
async def test_a_record_that_kafka_refuses_is_found_and_all_others_are_written(bad):
    log = Log(too_large(*bad))
    outcomes = await written(log, *(entry(first, 100) for first in range(0, 5000, 100)))
    assert log.ids() == [str(number) for number in range(5000) if str(number) not in bad]
    assert log.seqs() == list(range(1, 5001 - len(bad))), "its number is the next one's"
    letters = [record for record in log.records if record.topic == "d"]
    assert [record.key for record in letters] == [one.encode() for one in bad]
    assert all(dict(record.headers)["reason"] == REASON.encode() for record in letters)
    assert sum(isinstance(one, Condemned) for one in outcomes) == len(bad)
    assert log.attempts < 120 * len(bad)


async def test_a_batch_that_is_too_large_as_a_whole_is_written_in_parts():
    """The topic's limit may be lowered below that of a batch: no record of it is bad."""

    def refuse(batch: Batch) -> KafkaException | None:
        size = sum(len(one.statuses) for one in batch.entries)
        return failure(KafkaError.MSG_SIZE_TOO_LARGE) if size > 64 else None

    log = Log(refuse)
    outcomes = await written(log, entry(0, 3000))
    assert log.ids() == [str(number) for number in range(3000)]
    assert not any(isinstance(one, Condemned) for one in outcomes)
    assert sum(isinstance(one, Failed) for one in outcomes) < 30, "it stays below the limit for a while"


async def test_what_was_read_under_a_lost_lease_is_never_written():
    log = Log()
    await written(log, entry(1), entry(2, tenure=LOST), entry(3))
    assert log.ids() == ["1", "3"]


def test_a_full_queue_is_polled_until_it_takes_the_record():
    class Full:
        taken: list[str]
        room = 0

        def produce(self, topic: str, *_: object, **__: object) -> None:
            if self.room == 0:
                raise BufferError
            self.room -= 1
            self.taken.append(topic)

        def poll(self, _: float) -> None:
            self.room += 1

    full = Full()
    full.taken = []
    produce(full, [Record(topic, None, None, []) for topic in ("a", "b", "c")])
    assert full.taken == ["a", "b", "c"]
