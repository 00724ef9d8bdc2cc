"""Every exception the connector raises on purpose, as one tree.

What each asks of whoever catches it: `ConfigurationError`, `TopicsMismatch` and `CopyRefused` need a person,
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


class CopyRefused(ConnectorError):
    """Topics cannot be copied as things are; the message says what to do first. Nothing was copied."""


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
    """The connection failed or ended; another attempt may work.

    What `stream.policy` makes of each of the kinds below decides when that attempt comes.
    """


class Unreachable(Disconnected):
    """No request got as far as the upstream: no address, no TCP, no TLS, no credentials to send."""


class Unsendable(Disconnected):
    """The request must not go where it leads, or is longer than any server takes; waiting does not help."""


class Stalled(Disconnected):
    """Nothing came for longer than the dialect allows, not even a keep-alive.

    Attributes:
        silent_s: for how long nothing came within a body; 0 where there was no answer at all.
    """

    def __init__(self, message: str, silent_s: float = 0.0) -> None:
        super().__init__(message)
        self.silent_s = silent_s


class FramingLost(Disconnected):
    """The bytes no longer tell where a frame begins; only a new connection can."""


class EndedByServer(Disconnected):
    """The upstream announced in the stream that it closes the connection.

    Attributes:
        code: what the announcement gives as its kind; None where it gives none.
    """

    def __init__(self, notice: str, code: str | None = None) -> None:
        super().__init__(f"the server said {notice}")
        self.code = code


class BadStatus(Disconnected):
    """The upstream answered with something other than 200.

    Attributes:
        status: the HTTP status code.
        retry_after_s: seconds the answer asks to wait; None if it does not say.
        reset_in_s: seconds until the rate limit starts anew; matters to who is rate-limited only.
    """

    def __init__(
        self,
        status: int,
        body: str = "",
        *,
        retry_after_s: float | None = None,
        reset_in_s: float | None = None,
    ) -> None:
        super().__init__(f"HTTP {status}: {body}" if body else f"HTTP {status}")
        self.status = status
        self.retry_after_s = retry_after_s
        self.reset_in_s = reset_in_s


class WrongContent(Disconnected):
    """The upstream answered 200 with what is no stream of this dialect, by media type or coding, or no rules.

    Attributes:
        is_declared: the dialect says which media types it accepts, so this is a wrong address.
    """

    def __init__(self, message: str, *, is_declared: bool) -> None:
        super().__init__(message)
        self.is_declared = is_declared


class RulesRefused(Disconnected):
    """The upstream refuses a rule; only other predicates help.

    Attributes:
        value: the rule; empty where the upstream does not say which one.
    """

    def __init__(self, value: str, words: str) -> None:
        rule = f"the rule {value[:150]!r}" if value else "a rule"
        super().__init__(" ".join(f"the upstream refuses {rule}: {words}".split())[:300])
        self.value = value


class WriteRefused(ConnectorError):
    """Kafka refuses what is written in a way that only a person can mend: rights, or configuration."""


class IllegalTransition(ConnectorError):
    """A state machine got a signal that its phase does not allow: a bug."""
