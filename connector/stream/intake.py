"""One connection's bytes to messages: inflate, frame, decode. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from connector.errors import FramingLost
from connector.stream.dialect import Dialect, Framing
from connector.stream.documents import DocumentFramer
from connector.stream.framing import Framer, LengthFramer, LineFramer
from connector.stream.inflate import inflater
from connector.stream.messages import Decoder, Messages
from connector.stream.sse import SseFramer


@dataclass(frozen=True, slots=True)
class Piece:
    """What a piece of a stream held.

    Attributes:
        messages: may be none: a piece may be nothing but a keep-alive.
        discarded: bytes that could not be used, by reason.
    """

    messages: Messages
    discarded: Counter[str] = field(default_factory=Counter)


class Intake:
    """Takes what one connection brings.

    A large chunk of a compressed stream makes several pieces, so that memory stays flat whatever it
    expands to.
    """

    def __init__(self, dialect: Dialect, decoder: Decoder, coding: str) -> None:
        """Prepare for a connection.

        Args:
            dialect: how messages are told apart.
            decoder: which message is what.
            coding: the answer's content coding.

        Raises:
            ValueError: no such coding is known.
        """
        self._decoder = decoder
        self._inflate = inflater(coding)
        self._framer = _framer(dialect.framing)

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """Take the next bytes and yield what they complete.

        Raises:
            FramingLost: only a new connection can go on.
        """
        framer = self._framer
        for piece in self._inflated(chunk):
            if isinstance(framer, SseFramer):
                messages, dropped = self._decoder.decode_events(framer.feed(piece), framer.last_id)
                if dropped:
                    framer.discarded["other_event"] += dropped
            else:
                messages = self._decoder.decode(framer.feed(piece))
            yield Piece(messages, self._discarded())

    def _inflated(self, chunk: bytes) -> Iterator[bytes]:
        try:
            yield from self._inflate.feed(chunk)
        except FramingLost:
            self._framer.discarded["undecodable"] += len(chunk)
            raise

    def _discarded(self) -> Counter[str]:
        discarded, self._framer.discarded = self._framer.discarded, Counter()
        return discarded

    @property
    def retry_s(self) -> float:
        """How long the stream said to wait before a reconnect; 0 if it did not."""
        return (self._framer.retry_s or 0.0) if isinstance(self._framer, SseFramer) else 0.0

    def end(self) -> Counter[str]:
        """Return what is left over when the connection ends, as `Piece.discarded`.

        A tail is no frame: its sender never finished it.
        """
        discarded = self._discarded()
        if self._framer.held_bytes:
            discarded["cut"] += self._framer.held_bytes
        return discarded

    @property
    def is_whole(self) -> bool:
        """Whether the content coding is at an end, as far as it can tell."""
        return self._inflate.is_complete


def _framer(framing: Framing) -> Framer[bytes] | SseFramer:
    limit = framing.max_frame_bytes
    match framing.kind:
        case "length":
            return LengthFramer(limit)
        case "lines" if framing.delimiter == "any":
            return LineFramer(None, limit)
        case "lines":
            return LineFramer(framing.delimiter.encode(), limit)
        case "json":
            return DocumentFramer(limit)
        case "sse":
            return SseFramer(limit)
