"""What a request asks for, read from its parameters. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

from .framing import frame_by_crlf, frame_by_length
from .predicates import Predicates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .statuses import Status

MAX_TRACK = 400
MAX_FOLLOW = 5_000


class Refused(Exception):
    """The request cannot be served, now or later.

    Attributes:
        status: the HTTP status that says so.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Subscription:
    """A request that can be served.

    Attributes:
        track: the phrases, as the request spelled them.
        follow: the users, as the request spelled them.
        predicates: both, parsed.
        since_seq: exclusive cursor to replay from, None for live only.
        share: which part of what matches, counted from 0, and of how many.
        frame: lays a message out as the client wants it.
    """

    track: str
    follow: str
    predicates: Predicates
    since_seq: int | None
    share: tuple[int, int]
    frame: Callable[[bytes], bytes]

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Subscription:
        """Read the parameters of a request.

        Raises:
            Refused: they ask for nothing, for too much, or make no sense.
        """
        track, follow = parameters.get("track", ""), parameters.get("follow", "")
        by_length = parameters.get("delimited") == "length"
        predicates = Predicates.parse(track, follow)
        if not (predicates.track_count or predicates.users):
            raise Refused(406, "At least one of track and follow is needed.")
        if predicates.track_count > MAX_TRACK or len(predicates.users) > MAX_FOLLOW:
            raise Refused(413, f"At most {MAX_TRACK} track and {MAX_FOLLOW} follow.")
        return cls(
            track=track,
            follow=follow,
            predicates=predicates,
            since_seq=_since_seq(parameters.get("since_seq")),
            share=_share(parameters.get("partition", "0"), parameters.get("partitions", "1")),
            frame=frame_by_length if by_length else frame_by_crlf,
        )

    def body(self, status: Status) -> bytes | None:
        """Return the message about a status, None if it is not asked for."""
        part, count = self.share
        is_asked_for = crc32(b"%d" % status.id) % count == part and self.predicates.match(status)
        return status.body if is_asked_for else None


def _since_seq(value: str | None) -> int | None:
    if value is None:
        return None
    if not _is_number(value):
        raise Refused(400, "since_seq must be the number of a status, or 0.")
    return int(value)


def _share(part: str, count: str) -> tuple[int, int]:
    if not (_is_number(part) and _is_number(count) and int(part) < int(count)):
        raise Refused(400, "partition must be a number below partitions.")
    return int(part), int(count)


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 18
