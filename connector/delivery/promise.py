"""What can be promised of a stream: it depends on the upstream as much as on the connector. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connector.delivery.dedupe import WINDOW

Mode = Literal["exactly_once", "at_least_once"]
Resumes = Literal["by_cursor", "by_time", "not_at_all"]


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise, in words.

    Attributes:
        name: for metrics and dashboards.
        restart: what holds over restarts, rebalances, crashes and outages of Kafka.
        outage: what holds over outages of the upstream.
    """

    name: str
    restart: str
    outage: str


def promise(mode: Mode, resumes: Resumes, reaches_back_s: float | None) -> Promise:
    """Return what is promised.

    Args:
        mode: how it is written.
        resumes: how the upstream goes on after an interruption.
        reaches_back_s: how long it keeps what it can send again; None if nobody knows a limit.
    """
    once = "exactly once" if mode == "exactly_once" else "at least once"
    far = "as far back as the upstream keeps them"
    if reaches_back_s is not None:
        far = f"for outages of up to {reaches_back_s:g} s"
    beyond = "a stream.gap event tells of what is beyond"
    match resumes:
        case "by_cursor":
            return Promise(mode, f"each status {once}, in order per key", f"{once}, {far}; {beyond}")
        case "by_time":
            within = f"while no more than the last {WINDOW} statuses come again"
            return Promise(
                f"{mode}_within_window",
                f"each status {once}, {within}",
                f"sent again and recognised, {far}; {beyond}",
            )
        case "not_at_all":
            return Promise(
                f"{mode}_while_running",
                f"each status {once} while a process lives and keeps its lease; a crash loses what was "
                "received and not committed, and a stream.gap event says so",
                "what is sent meanwhile is lost; a stream.gap event says from when to when",
            )
