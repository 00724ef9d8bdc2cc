"""Another number of control partitions, on a real broker: everything moves, and nothing happens twice."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from harness import STREAM, Connector, Kafka, Topics, Upstream, await_complete, eventually, stream

from connector.control.home import home

RESUME = {"resume": {"parameter": "since_seq", "cursor": "/seq"}}
OLD, NEW = 4, 7
OTHER = "news"


class Moved(Topics):
    """The topics under the names that two of them have afterwards."""

    __slots__ = ()

    def of(self, purpose: str) -> str:
        name = f"{self.prefix}-{purpose}"
        return f"{name}-new" if purpose in {"predicates", "positions"} else name


def connector(
    folder: Path, kafka: Kafka, streams: Mapping[str, object], partitions: int, topics: Topics | None = None
) -> Connector:
    """Return a connector with so many control partitions; and let *kafka* look at its topics, if given."""
    folder.mkdir(exist_ok=True)
    kafka.topics = topics or kafka.topics
    made = Connector(folder, kafka, dict(streams))
    content = yaml.safe_load(made.config.read_text())
    content["kafka"]["control_partitions"] = partitions
    made.config.write_text(yaml.safe_dump(content))
    return made


def told(kafka: Kafka) -> dict[tuple[str, int, int], list[str]]:
    """Return all answers by the record's key, partition and offset, in order."""
    answers: dict[tuple[str, int, int], list[str]] = {}
    for event in kafka.events("predicates."):
        place = event["key"], event["partition"], event["offset"]
        answers.setdefault(place, []).append(event["type"].partition(".")[2])
    return answers


def copy(new: Connector, kafka: Kafka) -> Any:
    old = Topics(prefix=kafka.topics.prefix)
    options = ("--predicates-from", old.of("predicates"), "--positions-from", old.of("positions"))
    return new.command("repartition", *options)


def test_streams_go_on_from_where_they_were_among_seven_partitions_instead_of_four(
    kafka: Kafka, tmp_path: Path
) -> None:
    """Each status once, `seq` without a hole; who waited is told once, and nobody twice."""
    assert home(STREAM, OLD) != home(STREAM, NEW) or home(OTHER, OLD) != home(OTHER, NEW)
    # Beside a connection that lives, a change waits for minutes: only the next process will apply it.
    slow = {"override": RESUME, "debounce": {"min_s": 300, "max_s": 600}}
    options = ("--rate", "200", "--connects", "1000")
    with Upstream(*options) as tech, Upstream(*options, "--seed", "2") as news:
        streams = {STREAM: stream(tech.url, **slow), OTHER: stream(news.url, **slow)}
        answers = {}
        with connector(tmp_path / "old", kafka, streams, OLD) as old:
            old.create_topics().start()
            elsewhere = (home(STREAM, OLD) + 1) % OLD
            for key in (f"{STREAM}/a", OTHER):
                place = (key, *kafka.publish(key, {"track": ["kafka"]}, partition=elsewhere))
                moves = home(key.partition("/")[0], OLD) != elsewhere
                answers[place] = ["rerouted", "accepted", "applied"] if moves else ["accepted", "applied"]
            eventually(lambda: told(kafka) == answers, "both streams ask")
            at_home = home(STREAM, OLD)
            bad = (f"{STREAM}/a", *kafka.publish(f"{STREAM}/a", b"rubbish", partition=at_home))
            waits = (f"{STREAM}/b", *kafka.publish(f"{STREAM}/b", {"track": ["rust"]}, partition=at_home))
            moved = (f"{STREAM}/c", *kafka.publish(f"{STREAM}/c", {"track": ["flink"]}, partition=elsewhere))
            answers |= {bad: ["rejected"], waits: ["accepted"], moved: ["rerouted", "accepted"]}
            eventually(lambda: told(kafka) == answers, "one was rejected, two wait")
            eventually(lambda: len(kafka.delivered(STREAM)) > 100, "a flow")
            eventually(lambda: len(kafka.delivered(OTHER)) > 100, "another flow")
            assert old.stop()[0] == 0
        late = (f"{STREAM}/d", *kafka.publish(f"{STREAM}/d", {"track": ["python"]}, partition=at_home))
        seqs = {name: len(kafka.delivered(name)) for name in streams}

        with connector(tmp_path / "new", kafka, streams, NEW, Moved(prefix=kafka.topics.prefix)) as new:
            new.create_topics()
            done = copy(new, kafka)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith(
                "copied the positions of 2 streams, what 4 control keys ask for, and 1 "
            )
            assert told(kafka) == answers
            new.start()
            answers[waits].append("applied")
            answers[moved].append("applied")
            answers[late] = ["accepted", "applied"]
            eventually(lambda: told(kafka) == answers, "who waited is told, and whoever came late")
            eventually(lambda: len(kafka.delivered(STREAM)) > seqs[STREAM] + 100, "the flow goes on")
            eventually(lambda: len(kafka.delivered(OTHER)) > seqs[OTHER] + 100, "the other one, too")
            await_complete(kafka, tech, stream=STREAM)
            await_complete(kafka, news, stream=OTHER)
            newest = tech.connections()[-1]
            assert set(newest["track"].split(",")) == {"kafka", "rust", "flink", "python"}
            assert newest["since_seq"] is not None
            assert new.stop()[0] == 0
            assert told(kafka) == answers
            assert kafka.events("stream.gap") == []
            # A second life on the new topics finds everything there again.
            tech.thaw()
            more = (
                f"{STREAM}/e",
                *kafka.publish(f"{STREAM}/e", {"track": ["java"]}, partition=home(STREAM, NEW)),
            )
            new.start()
            eventually(lambda: told(kafka).get(more, [])[-1:] == ["applied"], "a new change")
            await_complete(kafka, tech, stream=STREAM)
            assert new.stop()[0] == 0
            assert {place: its for place, its in told(kafka).items() if place != more} == answers
            assert len(kafka.records("dlq")) == 1


def test_nothing_is_copied_while_somebody_runs_or_where_something_is(kafka: Kafka, tmp_path: Path) -> None:
    """Nor by a copy that was interrupted: the next one begins anew."""
    with Upstream("--rate", "100", "--connects", "1000") as upstream:
        streams = {STREAM: stream(upstream.url, override=RESUME)}
        topics = kafka.topics
        with connector(tmp_path / "old", kafka, streams, OLD) as old:
            old.create_topics().start()
            kafka.publish(STREAM, {"track": ["kafka"]})
            eventually(lambda: len(kafka.delivered()) > 20, "a flow")
            new = connector(tmp_path / "new", kafka, streams, NEW, Moved(prefix=topics.prefix))
            new.create_topics()
            refused = copy(new, kafka)
            assert (refused.returncode, refused.stdout) == (3, "")
            assert "has members: stop all replicas first" in refused.stderr
            assert kafka.records("positions", "read_uncommitted") == []
            assert old.stop()[0] == 0

        dead = Producer(
            {"bootstrap.servers": kafka.bootstrap, "transactional.id": f"{new.group}-repartition"}
        )
        dead.init_transactions(10)
        dead.begin_transaction()
        for number in range(NEW):
            dead.produce(kafka.topics.of("predicates"), b'{"track": ["java"]}', STREAM, number)
            dead.produce(kafka.topics.of("positions"), b'{"seq": 7}', STREAM, number)
        assert dead.flush(10) == 0

        with new:
            done = copy(new, kafka)
            assert done.returncode == 0, done.stderr
            assert {one.key() for one in kafka.records("predicates")} == {STREAM.encode()}
            assert len([one for one in kafka.records("positions") if one.key() == STREAM.encode()]) == 1
            before = kafka.records("positions", "read_uncommitted")
            again = copy(new, kafka)
            assert again.returncode == 3
            assert f"topic '{kafka.topics.of('predicates')}' is not empty" in again.stderr
            assert len(kafka.records("positions", "read_uncommitted")) == len(before)
            new.start()
            eventually(new.is_ready, "the flow goes on")
            await_complete(kafka, upstream)
            assert told(kafka) == {(STREAM, home(STREAM, OLD), 0): ["accepted", "applied"]}
            assert new.stop()[0] == 0


def test_topics_that_cannot_be_understood_are_not_copied(kafka: Kafka, tmp_path: Path) -> None:
    """Names that are not there, or that are another topic's."""
    streams = {STREAM: stream("http://127.0.0.1:1")}
    old = connector(tmp_path / "old", kafka, streams, OLD).create_topics()
    new = connector(tmp_path / "new", kafka, streams, NEW, Moved(prefix=kafka.topics.prefix)).create_topics()
    was = Topics(prefix=kafka.topics.prefix)
    absent = new.command(
        "repartition", "--predicates-from", "absent", "--positions-from", was.of("positions")
    )
    assert (absent.returncode, absent.stderr.strip()) == (3, "there is no topic 'absent'")
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    producer.produce(was.of("positions"), b'{"seq": 7}', STREAM, 0)
    producer.produce(was.of("dlq"), b"rubbish", STREAM)
    assert producer.flush(10) == 0
    unanswered = copy(new, kafka)
    assert unanswered.returncode == 3
    assert "has answered nothing" in unanswered.stderr
    swapped = new.command(
        "repartition", "--predicates-from", was.of("predicates"), "--positions-from", was.of("dlq")
    )
    assert swapped.returncode == 3
    assert "does not hold positions" in swapped.stderr
    producer.produce(was.of("positions"), b'{"seq": 9}', STREAM, 1)
    assert producer.flush(10) == 0
    twice = copy(new, kafka)
    assert twice.returncode == 3
    assert "has positions in partitions 0 and 1" in twice.stderr
    assert kafka.records("predicates") == kafka.records("positions") == []
    assert old.process is None


def test_partitions_that_somebody_adds_are_noticed_and_there_is_a_way_out(
    kafka: Kafka, tmp_path: Path
) -> None:
    """Not ready while it runs, refused when it starts; and the copy finds the streams where they are."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    with Upstream("--rate", "100", "--connects", "1000") as upstream:
        streams = {STREAM: stream(upstream.url, override=RESUME)}
        with connector(tmp_path / "old", kafka, streams, OLD) as old:
            old.create_topics().start()
            kafka.publish(STREAM, {"track": ["kafka"]})
            eventually(old.is_ready, "ready")
            control, mirror = kafka.topics.of("predicates"), kafka.topics.of("positions")
            for future in admin.create_partitions([NewPartitions(control, NEW)]).values():
                future.result()
            trouble = f"topics: {control}: {NEW} partitions instead of {OLD}"
            eventually(lambda: trouble in old.ops("/readyz")[1], "not ready, with the number")
            lost = (f"{STREAM}/x", *kafka.publish(f"{STREAM}/x", {"track": ["rust"]}, partition=NEW - 1))
            old.stop(signal.SIGTERM)
            refused = old.command("run")
            assert refused.returncode == 3
            assert f"topic '{mirror}' has {OLD} partitions, but must have {NEW}" in refused.stderr
            assert "connector repartition --help" in refused.stderr
            for future in admin.create_partitions([NewPartitions(mirror, NEW)]).values():
                future.result()
            refused = old.command("run")
            assert refused.returncode == 3
            assert (
                f"topic '{control}' has {NEW} partitions, but kafka.control_partitions is {OLD}"
                in refused.stderr
            )

        with connector(tmp_path / "new", kafka, streams, NEW, Moved(prefix=kafka.topics.prefix)) as new:
            new.create_topics()
            done = copy(new, kafka)
            assert done.returncode == 0, done.stderr
            new.start()
            eventually(
                lambda: told(kafka).get(lost, [])[-1:] == ["applied"], "what nobody had read is answered"
            )
            await_complete(kafka, upstream)
            assert new.stop()[0] == 0


def test_a_replica_that_starts_too_early_waits_for_the_copy(kafka: Kafka, tmp_path: Path) -> None:
    """The copy is a member of the group; while another one is, it does not begin."""
    streams = {STREAM: stream("http://127.0.0.1:1")}
    connector(tmp_path / "old", kafka, streams, OLD).create_topics()
    new = connector(tmp_path / "new", kafka, streams, NEW, Moved(prefix=kafka.topics.prefix)).create_topics()
    member = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": new.group})
    try:
        member.subscribe([Topics(prefix=kafka.topics.prefix).of("predicates")])
        eventually(lambda: member.poll(0.1) is None and member.assignment(), "a member")
        refused = copy(new, kafka)
        assert refused.returncode == 3
        assert "has members" in refused.stderr
    finally:
        member.close()
    assert copy(new, kafka).returncode == 0
