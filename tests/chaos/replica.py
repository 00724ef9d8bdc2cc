"""Runs the connector so that two of its threads can be made to hang from outside.

    python replica.py run --config connector.yaml

Standard input takes "lease SECONDS" and "loop SECONDS": the thread that polls the group hangs for so long,
or the event loop. The connector knows nothing of it: the consumer that it imports is replaced by one that
can be held up, and the event loop is held up by a signal's handler. A thread that hangs does not hold the
interpreter's lock: the others go on, as they do beside a system call that does not return.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import confluent_kafka
from confluent_kafka import Message

_NEVER = threading.Event()


class Hold:
    """For how many seconds which thread is to hang next."""

    def __init__(self) -> None:
        self.lease_s = self.loop_s = 0.0

    def take_orders(self) -> None:
        """Read standard input until it ends."""
        for line in sys.stdin:
            thread, seconds = line.split()
            setattr(self, f"{thread}_s", float(seconds))
            if thread == "loop":
                os.kill(os.getpid(), signal.SIGUSR2)

    def lease(self) -> None:
        """Hang, if the lease's thread shall."""
        if threading.current_thread().name == "lease" and self.lease_s:
            seconds, self.lease_s = self.lease_s, 0.0
            _NEVER.wait(seconds)

    def loop(self, *_: object) -> None:
        """Hang; runs in the main thread, which is the event loop's."""
        _NEVER.wait(self.loop_s)


def main() -> None:
    """Put the consumer in place, and be the connector."""
    hold = Hold()

    class Consumer(confluent_kafka.Consumer):
        def consume(self, *arguments: Any) -> list[Message]:
            hold.lease()
            return super().consume(*arguments)

    confluent_kafka.Consumer = Consumer
    signal.signal(signal.SIGUSR2, hold.loop)
    threading.Thread(target=hold.take_orders, daemon=True).start()
    from connector.cli import main as connector  # only now: its modules import the client by name

    connector()


if __name__ == "__main__":
    main()
