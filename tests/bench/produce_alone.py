"""``produce()`` alone, in transactions of ten thousand: ``python produce_alone.py BOOTSTRAP TOPIC SIZE SECONDS``."""

from __future__ import annotations

import os
import sys

from confluent_kafka import Producer
from upstream import statuses
from window import Window

PER_TRANSACTION = 10_000


def main(bootstrap: str, topic: str, size: str, seconds: str) -> None:
    """Produce until the time is over."""
    window, count = Window(float(seconds)), 0
    records = [(str(number), one) for number, one in enumerate(statuses(int(size)))]
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": f"{topic}-alone",
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "partitioner": "murmur2_random",
        }
    )
    producer.init_transactions()
    while not window.is_over(count):
        producer.begin_transaction()
        for _ in range(PER_TRANSACTION // len(records)):
            for key, value in records:
                while True:
                    try:
                        producer.produce(topic, value, key)
                        break
                    except BufferError:
                        producer.poll(0.01)
            count += len(records)
        producer.commit_transaction(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
