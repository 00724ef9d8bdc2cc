"""Every exception the connector raises on purpose, as one tree.

What each asks of whoever catches it: `ConfigurationError` and `TopicsMismatch` need a person,
`Disconnected` needs another attempt, `PredicatesRejected` needs an answer to its publisher, and
`IllegalTransition` is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConnectorError(Exception):
    """The root: anything below it was foreseen."""


class ConfigurationError(ConnectorError):
    """The configuration cannot work; retrying does not help.

    Attributes:
        mistakes: one line per mistake, each starting with its place.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = list(mistakes)


class TopicsMismatch(ConnectorError):
    """Topics are missing or unfit; the message names each and the command that mends it."""


class PredicatesRejected(ConnectorError):
    """A control record that must change nothing.

    Attributes:
        reason: a stable code, e.g. ``unknown_predicate``.
        pointer: JSON pointer (RFC 6901) to the offending part of the value.
    """

    def __init__(self, reason: str, detail: str, pointer: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.pointer = pointer


class Disconnected(ConnectorError):
    """The connection failed or ended; another attempt may work."""


class BadStatus(Disconnected):
    """The upstream answered with something other than 200.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, status: int, body: str = "") -> None:
        super().__init__(f"HTTP {status}: {body}" if body else f"HTTP {status}")
        self.status = status


class FramingLost(Disconnected):
    """The bytes no longer tell where a frame begins; only a new connection can."""


class IllegalTransition(ConnectorError):
    """A state machine got a signal that its phase does not allow: a bug."""
