"""An upstream's manners, as data: one TOML file per dialect, any key of it overridable. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)

from connector.stream.backoff import Backoff
from connector.stream.request import Request
from connector.stream.values import (
    HeaderName,
    JsonPointer,
    MediaType,
    Pattern,
    Seconds,
    Status,
)


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Response(_Group):
    """What an answer has to look like."""

    media_types: list[MediaType] = []
    """Accepted; any other means that the address is wrong. Empty: all but an HTML page."""

    compression: list[Literal["gzip", "deflate", "zstd"]] = []
    """Asked for. Off by default: many servers flush compressed streams late."""


class Framing(_Group):
    """How messages are told apart."""

    kind: Literal["length", "lines", "sse", "json"]
    delimiter: Literal["\r\n", "\n", "any"] = "any"
    """Ends a message when *kind* is ``lines``; ``any`` is a newline, with or without a return."""

    max_frame_bytes: PositiveInt = 1_000_000
    """Longest message accepted. Kafka's own default limit is 1,048,588 bytes for a whole batch."""


class Disconnect(_Group):
    """How the upstream announces in the stream that it ends the connection."""

    at: JsonPointer
    """A message with this member is such an announcement."""

    code: JsonPointer | None = None
    """Where within that member its kind stands."""

    refused: list[str | int] = []
    """Codes after which only other credentials, predicates or settings help."""

    replaced: list[str | int] = []
    """Codes that end the older of two connections: what is expected while a newer one takes over."""


class Delete(_Group):
    """How the upstream says that it deleted a status: the status becomes a tombstone."""

    id: JsonPointer | None = None
    """Where such a message has the deleted status's id, a string or an integer. None: its data are the id."""

    event: str | None = Field(default=None, min_length=1)
    """The type of server-sent events that are such messages. None: each message with an id there is one."""

    @model_validator(mode="after")
    def _recognisable(self) -> Delete:
        if self.id is None and self.event is None:
            raise ValueError("give id, event or both")
        return self


class Messages(_Group):
    """What kinds of messages there are."""

    id: JsonPointer
    """Where a status has its id, a string or an integer; messages without one are not statuses."""

    events: list[str] = []
    """Types of server-sent events that carry messages, beside the deletes'; others are dropped. Empty: all
    of them do."""

    notices: dict[str, JsonPointer] = {}
    """Messages that are no statuses but worth an event, by name: where the member that tells them is."""

    delete: Delete | None = None

    limit: JsonPointer | None = None
    """Where a message says how many statuses were withheld since the connection opened, an integer."""

    disconnect: Disconnect | None = None

    rules: Annotated[str, Field(pattern=r"^/[^/]+$")] | None = None
    """A status's own member that says which predicates it matched: it becomes the header ``rules``."""


class Resume(_Group):
    """How to go on after the last status received, where the upstream can.

    With a cursor it goes on after a status. Without one, some go on from a time: more comes again then, which
    is recognised and dropped.
    """

    parameter: str | None = Field(default=None, min_length=1)
    """Request parameter that carries the cursor, or the time; the upstream sends what comes after it."""

    header: HeaderName | None = None
    """The same as a header, e.g. ``Last-Event-ID``."""

    cursor: JsonPointer | None = None
    """Where a status has its cursor, a string or an integer. Server-sent events: their id, if None."""

    since: Literal["rfc3339", "seconds", "milliseconds", "minutes_ago"] | None = None
    """Go on from the time when the upstream was heard last: how it is written, seconds and milliseconds since
    the epoch. ``minutes_ago`` is how long ago that is, rounded up, for upstreams with a backfill."""

    margin_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 10.0
    """Go on from so much earlier: clocks differ, and statuses are on their way for a while."""

    reaches_back_s: Seconds | None = None
    """How long the upstream keeps what it can send again; None: for ever, as far as is known."""

    forgotten: list[Status] = [410]
    """Answers that say that it no longer has what the cursor points to. It is asked without one then."""

    @model_validator(mode="after")
    def _one_way(self) -> Resume:
        if (self.parameter is None) == (self.header is None):
            raise ValueError("give exactly one of parameter and header")
        if self.since is not None and self.cursor is not None:
            raise ValueError("give cursor or since: an upstream goes on after a status or from a time")
        return self


class Liveness(_Group):
    """When a connection counts as dead, and when as healthy."""

    connect_timeout_s: Seconds = 10.0
    """For address, TCP and TLS together."""

    headers_timeout_s: Seconds = 30.0
    """From the request to the last of the answer's headers, however slowly they trickle in."""

    stall_timeout_s: Seconds
    """Longest silence within the body, keep-alives counting as sound."""

    healthy_after_s: Seconds = 30.0
    """How long a connection has to live until its loss is no reason to back off."""

    patience_s: Seconds = 60.0
    """How long the connection may go unread because Kafka takes nothing: then it is closed on purpose, to be
    resumed later. Upstreams drop statuses, or a reader so slow, and Twitter counts it against him."""

    grace_s: Seconds | None = None
    """So long after its 200 a connection counts as live without a byte. For upstreams that are silent until
    something matches: elsewhere the first byte is the proof."""


class Delays(_Group):
    """One back-off rule: ``next = min(cap, add + factor * delay)``; jitter comes off afterwards."""

    first_s: Seconds
    add_s: Annotated[float, Field(ge=0, le=7 * 86_400, allow_inf_nan=False)] = 0.0
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    cap_s: Seconds
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2

    def backoff(self) -> Backoff:
        """Return the rule as the reader uses it."""
        return Backoff(**self.model_dump())


class Backoffs(_Group):
    """Which rule follows which failure."""

    network: Delays
    """TCP and TLS failures, stalls, and connections that end or break."""

    http: Delays
    """Statuses that are neither refusals nor rate limits."""

    rate_limited: Delays


class Policy(_Group):
    """What an answer's status means; each that is not listed follows the HTTP rule."""

    rate_limited: list[Status] = [420, 429]
    refused: list[Status] = [204, 401, 403, 404, 406, 410, 413, 414, 416, 431]
    """The same request will fail again."""

    too_many_connections: Pattern | None = None
    """Regular expression, found in the beginning of the answer that refuses one connection more."""

    retry_refused_after_s: Seconds = 900.0
    """Tried again so much later although nothing changed: access may have been granted meanwhile."""


class Attempts(_Group):
    """The upstream's limit on connection attempts."""

    attempts: PositiveInt
    window_s: Seconds


class Handover(_Group):
    """How a restart for changed predicates goes."""

    strategy: Literal["overlap", "break", "rules"] = "overlap"
    """The new connection lives before the old one goes; or, where one connection is all there may be,
    the old one is closed first; or the upstream's rules are changed, and no connection is."""

    drain_quiet_s: Seconds = 0.5
    """Silence on the old connection, once the new one is live, that ends the overlap."""

    drain_max_s: Seconds = 5.0
    """Longest overlap once the new connection is live."""


class Rules(_Group):
    """Predicates that the upstream keeps as rules, as X's API v2 does, apart from the connection."""

    path: str = Field(default="/rules", pattern=r"^/[!-~]*$")
    """Where they are, added to the path of the stream's address."""

    predicate: str
    """Which predicate's values are the rules."""


class Dialect(_Group):
    """All of an upstream's manners."""

    request: Request
    response: Response = Response()
    framing: Framing
    messages: Messages
    liveness: Liveness
    backoff: Backoffs
    policy: Policy = Policy()
    budget: Attempts | None = None
    handover: Handover = Handover()
    rules: Rules | None = None
    resume: Resume | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Dialect:
        resume, request, delete = self.resume, self.request, self.messages.delete
        if (self.rules is None) == (self.handover.strategy == "rules"):
            raise ValueError("rules: a dialect has them where handover.strategy is 'rules', and only there")
        if self.rules is not None and request.predicates.keys() != {self.rules.predicate}:
            raise ValueError("rules.predicate: it has to be the dialect's only predicate")
        if self.rules is not None and request.partition is not None:
            raise ValueError("request.partition: connections cannot share what an upstream keeps as rules")
        cursor = None if resume is None else resume.cursor
        matched = self.messages.rules
        if matched and any(f"{one}/".startswith(f"{matched}/") for one in (self.messages.id, cursor) if one):
            raise ValueError("messages.rules: neither messages.id nor resume.cursor can lie within it")
        if delete is not None and delete.event is not None and self.framing.kind != "sse":
            raise ValueError("messages.delete.event: only server-sent events have a type")
        if delete is not None and delete.event is None and delete.id == self.messages.id:
            raise ValueError(
                "messages.delete.id: what has messages.id is a status, so it has to be elsewhere"
            )
        if resume is None:
            return self
        if resume.cursor is None and resume.since is None and self.framing.kind != "sse":
            raise ValueError("resume.cursor: only server-sent events have ids that can stand in for it")
        if resume.parameter in request.names():
            raise ValueError(f"resume.parameter: {resume.parameter!r} is a parameter already")
        if resume.cursor is not None and _within(self.messages.id, resume.cursor):
            raise ValueError("messages.id and resume.cursor: one cannot lie within the other")
        return self

    def forgets(self, code: str | None) -> bool:
        """Whether an answer of that status says that what the cursor points to is gone."""
        return self.resume is not None and code in {str(one) for one in self.resume.forgotten}


def _within(one: str, other: str) -> bool:
    """Whether one of two different pointers leads into what the other leads to."""
    one, other = f"{one}/", f"{other}/"
    return one != other and (one.startswith(other) or other.startswith(one))


def names() -> list[str]:
    """Return the dialects that come with the connector."""
    return sorted(_shipped())


def text(name: str) -> str:
    """Return the file of the dialect *name*.

    Raises:
        KeyError: there is no dialect of that name.
    """
    return _shipped()[name]


def load(name: str, override: Mapping[str, object]) -> Dialect:
    """Return the dialect *name* with the keys of *override* laid over it; a value of None removes a key.

    Raises:
        KeyError: there is no dialect of that name.
        pydantic.ValidationError: what results is not a dialect; the errors name their place.
    """
    return parse(text(name), override)


def parse(content: str, override: Mapping[str, object]) -> Dialect:
    """Return the dialect that a TOML file's *content* describes, with *override* laid over it.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML; the message names the line.
        pydantic.ValidationError: what results is not a dialect; the errors name their place.
    """
    return Dialect.model_validate(_laid_over(tomllib.loads(content), override))


@cache
def _shipped() -> Mapping[str, str]:
    files = (resources.files("connector.stream") / "dialects").iterdir()
    return {file.name.removesuffix(".toml"): file.read_text("utf-8") for file in files}


def _laid_over(base: Mapping[str, object], override: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _laid_over(below, value)
        else:
            merged[key] = value
    return merged
