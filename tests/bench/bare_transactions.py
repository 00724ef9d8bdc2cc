"""A thousand records a second in bare transactions, one every ten milliseconds: what latency cannot be below.

python bare_transactions.py BOOTSTRAP TOPIC
"""

from __future__ import annotations

import sys
import threading
import time

from confluent_kafka import Producer
from upstream import SENT_AT

EVERY_S = 0.01
RATE = 1000


def main(bootstrap: str, topic: str) -> None:
    """Write until the end."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{topic}-bare", "linger.ms": 0})
    producer.init_transactions()
    pace, began_at, written = threading.Event(), time.monotonic(), 0
    fill = b'","text":"' + b"x" * 2000 + b'"}'
    while True:
        transaction_at = time.monotonic()
        if due := int((transaction_at - began_at) * RATE) - written:
            producer.begin_transaction()
            for number in range(written, written + due):
                # When it was due, not when its turn came: so an upstream would have written it.
                at = int((began_at + (number + 1) / RATE) * 1e9)
                producer.produce(topic, b"{%b%020d%b" % (SENT_AT, at, fill), str(number))
            producer.commit_transaction(10)
            written += due
        pace.wait(max(0.0005, transaction_at + EVERY_S - time.monotonic()))


if __name__ == "__main__":
    main(*sys.argv[1:])
