"""What the client library's consumer hands over, as control records."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException, Message

from connector.control.home import is_dealt, published
from connector.model import ControlRecord


def control_record(message: Message) -> ControlRecord:
    """Return the control record that *message*, which is no error, holds."""
    number, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
    assert number is not None
    assert offset is not None
    assert not isinstance(key, str)
    assert not isinstance(value, str)
    headers = message.headers() or []
    assert isinstance(headers, list)
    return ControlRecord(number, offset, key, value, published(headers), is_dealt(headers))


def is_end(message: Message) -> bool:
    """Whether *message* is no record, but word of the partition's end.

    Raises:
        KafkaException: it is an error.
    """
    error = message.error()
    if error is None:
        return False
    if error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 (the library's public name for it)
        raise KafkaException(error)
    return True
