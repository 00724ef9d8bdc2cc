"""An upstream's manners, as data: one TOML file per dialect, any key of it overridable. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from connector.model import PredicateSet
from connector.stream.backoff import Backoff
from connector.stream.framing import Framer, LengthFramer, LineFramer

JsonPointer = Annotated[str, Field(pattern=r"^(/[^/]+)+$")]
"""Where a member stands in a message (RFC 6901), e.g. ``/user/id_str``."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Request(_Group):
    """How predicates are asked for."""

    method: Literal["POST"] = "POST"
    separator: str = ","
    """Joins the values of one predicate into one form field."""

    parameters: dict[str, str] = {}
    """Form fields sent with every request."""

    predicates: list[str] = Field(min_length=1)
    """Names of the predicates this upstream knows; each is a form field."""


class Framing(_Group):
    """How messages are told apart."""

    kind: Literal["length", "lines"]
    delimiter: Literal["\r\n", "\n"] = "\r\n"
    """Ends a message when *kind* is ``lines``."""

    max_frame_bytes: PositiveInt = 1_000_000
    """Longest message accepted. Kafka's own default limit is 1,048,588 bytes for a whole batch."""

    def framer(self) -> Framer:
        """Return a framer for one connection."""
        if self.kind == "length":
            return LengthFramer(self.max_frame_bytes)
        return LineFramer(self.delimiter.encode(), self.max_frame_bytes)


class Messages(_Group):
    """What kinds of messages there are."""

    id: JsonPointer
    """Where a status has its id, a string; messages without one are not statuses."""

    disconnect: JsonPointer | None = None
    """A message with this member announces that the server closes the connection."""


class Resume(_Group):
    """How to go on after the last status received, where the upstream can."""

    parameter: str
    """Form field that carries the cursor; the upstream sends what comes after it."""

    cursor: JsonPointer
    """Where a status has its cursor, a string or an integer."""


class Liveness(_Group):
    """When a connection counts as dead."""

    connect_timeout_s: PositiveFloat = 10.0
    stall_timeout_s: PositiveFloat
    """Longest silence, keep-alives counting as sound, from the request on."""


class Delays(_Group):
    """One back-off rule: ``next = min(cap, add + factor * delay)``; jitter comes off afterwards."""

    first_s: PositiveFloat
    add_s: NonNegativeFloat
    factor: Annotated[float, Field(ge=1)] = 1.0
    cap_s: PositiveFloat
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2

    def backoff(self) -> Backoff:
        """Return the rule as the reader uses it."""
        return Backoff(**self.model_dump())


class Backoffs(_Group):
    """Which rule follows which failure."""

    network: Delays
    """TCP and TLS failures, stalls, and connections that end."""

    http: Delays
    """Every status but 200."""

    rate_limited: Delays
    """420 and 429."""


class Handover(_Group):
    """When the old connection of a restart has nothing more to give."""

    drain_quiet_s: PositiveFloat = 0.5
    """Silence on the old connection, once the new one is live, that ends the overlap."""

    drain_max_s: PositiveFloat = 5.0
    """Longest overlap once the new connection is live."""


class Dialect(_Group):
    """All of an upstream's manners."""

    request: Request
    framing: Framing
    messages: Messages
    liveness: Liveness
    backoff: Backoffs
    handover: Handover = Handover()
    resume: Resume | None = None

    @model_validator(mode="after")
    def _apart(self) -> Dialect:
        if self.resume is not None:
            one, other = f"{self.messages.id}/", f"{self.resume.cursor}/"
            if one != other and (one.startswith(other) or other.startswith(one)):
                raise ValueError("messages.id and resume.cursor: one cannot lie within the other")
        return self

    def form(self, predicates: PredicateSet, cursor: str | None) -> dict[str, str]:
        """Return the form fields that ask for *predicates* after *cursor*."""
        fields = dict(self.request.parameters)
        for name, values in predicates.terms:
            fields[name] = self.request.separator.join(values)
        if self.resume is not None and cursor is not None:
            fields[self.resume.parameter] = cursor
        return fields


def names() -> list[str]:
    """Return the dialects that come with the connector."""
    folder = resources.files("connector.stream") / "dialects"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir())


def load(name: str, override: Mapping[str, object]) -> Dialect:
    """Return the dialect *name* with the keys of *override* laid over it.

    A value of None in *override* removes a key.

    Raises:
        KeyError: there is no dialect of that name.
        pydantic.ValidationError: what results is not a dialect; the errors name their place.
    """
    if name not in names():
        raise KeyError(name)
    file = resources.files("connector.stream") / "dialects" / f"{name}.toml"
    return Dialect.model_validate(_laid_over(tomllib.loads(file.read_text("utf-8")), override))


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
