"""librdkafka's mock cluster, which fails on request: what a broker can answer, it answers.

It knows topics, groups and transactions, but no isolation: an aborted record stays readable, and offsets sent
to a transaction are forgotten, committed or not. Whoever judges by it has to know what was aborted.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

API_KEYS = {
    "Produce": 0,
    "FindCoordinator": 10,
    "InitProducerId": 22,
    "AddPartitionsToTxn": 24,
    "AddOffsetsToTxn": 25,
    "EndTxn": 26,
    "TxnOffsetCommit": 28,
}

_PRODUCER, _BROKER = 0, 1
_PATIENCE_S = 20.0
_FOR_EVER = 100_000


def _library() -> ctypes.CDLL:
    wheel = Path(confluent_kafka.__file__).parent
    (path,) = wheel.parent.glob("confluent_kafka.libs/librdkafka-*")
    library = ctypes.CDLL(str(path))
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    number, code = ctypes.c_int, ctypes.c_int16
    for name, returned, taken in (
        ("rd_kafka_conf_new", pointer, ()),
        ("rd_kafka_conf_set", number, (pointer, text, text, text, size)),
        ("rd_kafka_new", pointer, (number, pointer, text, size)),
        ("rd_kafka_destroy", None, (pointer,)),
        ("rd_kafka_handle_mock_cluster", pointer, (pointer,)),
        ("rd_kafka_mock_cluster_bootstraps", text, (pointer,)),
        ("rd_kafka_mock_topic_create", number, (pointer, text, number, number)),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            (pointer, code, size, ctypes.POINTER(number)),
        ),
        ("rd_kafka_mock_clear_request_errors", None, (pointer, code)),
        ("rd_kafka_mock_broker_push_request_error_rtts", number, (pointer, ctypes.c_int32, code, size)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    return library


_LIBRARY = _library()


class MockKafka:
    """One broker, in librdkafka's threads, until it is closed, which takes a moment."""

    def __init__(self, *topics: str) -> None:
        message = ctypes.create_string_buffer(512)
        configured = _LIBRARY.rd_kafka_conf_new()
        for name, value in ((b"test.mock.num.brokers", b"1"), (b"log_level", b"0")):
            assert _LIBRARY.rd_kafka_conf_set(configured, name, value, message, 512) == 0, message.value
        self._client = _LIBRARY.rd_kafka_new(_PRODUCER, configured, message, 512)
        assert self._client, message.value
        self._cluster = _LIBRARY.rd_kafka_handle_mock_cluster(self._client)
        for topic in topics:
            _LIBRARY.rd_kafka_mock_topic_create(self._cluster, topic.encode(), 1, 1)
        bootstrap: bytes = _LIBRARY.rd_kafka_mock_cluster_bootstraps(self._cluster)
        self.properties: dict[str, object] = {"bootstrap.servers": bootstrap.decode(), "log_level": 0}
        self._admin = AdminClient(self.properties)

    def close(self) -> None:
        """End it; who still asks it gets no answer."""
        del self._admin
        _LIBRARY.rd_kafka_destroy(self._client)

    def fail(self, api: str, *codes: int) -> None:
        """Answer the next requests of *api* with *codes*, one each."""
        many = (ctypes.c_int * len(codes))(*codes)
        _LIBRARY.rd_kafka_mock_push_request_errors_array(self._cluster, API_KEYS[api], len(codes), many)

    def fail_for_ever(self, api: str, code: int) -> None:
        """Answer each request of *api* with *code*, until `heal`."""
        self.fail(api, *[code] * _FOR_EVER)

    def heal(self, api: str) -> None:
        """Answer as if nothing were wrong."""
        _LIBRARY.rd_kafka_mock_clear_request_errors(self._cluster, API_KEYS[api])

    def delay(self, api: str, seconds: float) -> None:
        """Do what the next request of *api* asks, and answer it so much later."""
        error, wait_ms = ctypes.c_int(0), ctypes.c_int(int(seconds * 1000))
        _LIBRARY.rd_kafka_mock_broker_push_request_error_rtts(
            self._cluster, _BROKER, API_KEYS[api], 1, error, wait_ms
        )

    def commit(self, group: str, place: TopicPartition) -> None:
        """Commit an offset and its metadata, outside of any transaction."""
        member = Consumer({**self.properties, "group.id": group, "enable.auto.commit": False})
        try:
            member.commit(offsets=[place], asynchronous=False)
        finally:
            member.close()

    def end(self, topic: str) -> int:
        """Return the offset of the topic's next record."""
        place = TopicPartition(topic, 0)
        asked = self._admin.list_offsets({place: OffsetSpec.latest()}, request_timeout=_PATIENCE_S)
        end: int = asked[place].result().offset
        return end

    def records(self, topic: str) -> dict[int, Message]:
        """Return a topic's records by offset, aborted ones too."""
        reader = Consumer(
            {
                **self.properties,
                "group.id": "reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        try:
            reader.assign([TopicPartition(topic, 0, 0)])
            found: dict[int, Message] = {}
            while True:
                for message in reader.consume(10_000, 0.05):
                    if message.error() is not None:
                        return found
                    found[message.offset()] = message
        finally:
            reader.close()
