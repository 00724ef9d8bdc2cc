"""Control records to predicate sets, and their union. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from connector.errors import PredicatesRejected
from connector.model import PredicateSet, StreamId

MAX_VALUE_BYTES = 256 * 1024
"""Longest control record: some 5,000 terms of 50 bytes, and a bound on what a publisher can cost."""

MAX_KEY_BYTES = 1024
"""Longest control key: it comes back in every answer."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


class Limits(Protocol):
    """What an upstream takes of one predicate; None is no limit."""

    @property
    def max_values(self) -> int | None:
        """How many values."""

    @property
    def max_bytes(self) -> int | None:
        """How long each is, in bytes of UTF-8."""

    @property
    def pattern(self) -> str | None:
        """What each matches as a whole."""

    @property
    def lower_case(self) -> bool:
        """Whether case makes no difference."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one publisher asks of a stream.

    Attributes:
        is_paused: it is on record, but asks for nothing until its publisher says otherwise.
    """

    predicates: PredicateSet
    is_paused: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return it in the shape of a control record's value."""
        return {**self.predicates.as_dict(), **({"paused": True} if self.is_paused else {})}


def stream_of(key: bytes | None) -> StreamId:
    """Return the stream a control key ``<stream>`` or ``<stream>/<publisher>`` is about.

    Raises:
        PredicatesRejected: there is no key, or it is too long, or no UTF-8 text.
    """
    if not key:
        raise PredicatesRejected("key_missing", "the record needs a key: <stream> or <stream>/<publisher>")
    if len(key) > MAX_KEY_BYTES:
        raise PredicatesRejected("key_too_long", f"{len(key)} bytes; at most {MAX_KEY_BYTES}")
    try:
        return key.decode().partition("/")[0]
    except UnicodeDecodeError:
        raise PredicatesRejected("key_not_utf8", f"the key {key[:40]!r} is not UTF-8") from None


def check_size(value: bytes) -> None:
    """Check how long a record's value is.

    Raises:
        PredicatesRejected: it is too long.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise PredicatesRejected("too_large", f"{len(value)} bytes; at most {MAX_VALUE_BYTES}")


def parse(value: bytes, limits: Mapping[str, Limits]) -> Contribution:
    """Read a control record's value: a JSON object of lists of strings, and whether it is ``paused``.

    Args:
        value: the record's value, e.g. ``b'{"track": ["kafka"]}'``.
        limits: the predicates the stream's upstream knows, by name.

    Raises:
        PredicatesRejected: with a reason code and a pointer; the record must change nothing.
    """
    try:
        # The standard library's parser, because it alone can be asked about duplicate members.
        parsed = json.loads(value.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except PredicatesRejected:
        raise
    except (ValueError, RecursionError) as error:
        raise PredicatesRejected("not_json", str(error)[:200]) from None
    if not isinstance(parsed, dict):
        raise PredicatesRejected("not_an_object", 'expected an object like {"track": ["kafka"]}')
    is_paused = parsed.pop("paused", False)
    if not isinstance(is_paused, bool):
        raise PredicatesRejected("not_a_boolean", "expected true or false", "/paused")
    terms: dict[str, list[str]] = {}
    for name, values in parsed.items():
        pointer = _pointer(name)
        if name not in limits:
            known = ", ".join(sorted(limits))
            raise PredicatesRejected("unknown_predicate", f"known are: {known}", pointer)
        if not isinstance(values, list):
            raise PredicatesRejected("not_a_list", "expected a list of strings", pointer)
        terms[name] = [_term(term, limits[name], f"{pointer}/{at}") for at, term in enumerate(values)]
        most = limits[name].max_values
        if most is not None and len(set(terms[name])) > most:
            raise PredicatesRejected("too_many_values", f"the upstream takes {most}", pointer)
    return Contribution(PredicateSet.of(terms), is_paused)


def check_union(union: PredicateSet, before: PredicateSet, limits: Mapping[str, Limits]) -> None:
    """Check what all publishers together ask for against what the upstream takes.

    Args:
        union: what they would ask for.
        before: what they ask for now. A union that is too large already may shrink: limits change.
        limits: the predicates the stream's upstream knows, by name.

    Raises:
        PredicatesRejected: they would ask for too much, and for more than before.
    """
    asked = before.as_dict()
    for name, values in union.terms:
        most = limits[name].max_values if name in limits else None
        if most is not None and len(values) > max(most, len(asked.get(name, ()))):
            detail = f"all publishers together would ask for {len(values)}; the upstream takes {most}"
            raise PredicatesRejected("quota_exceeded", detail, _pointer(name))


def schema(stream: StreamId, limits: Mapping[str, Limits]) -> dict[str, object]:
    """Return a JSON Schema (2020-12) of the control records that *stream* takes."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"What one publisher asks of the stream {stream}",
        "type": "object",
        "properties": {
            **{name: _schema_of(its) for name, its in sorted(limits.items())},
            "paused": {"type": "boolean", "default": False},
        },
        "additionalProperties": False,
    }


def _schema_of(limits: Limits) -> dict[str, object]:
    item: dict[str, object] = {"type": "string", "minLength": 1}
    if limits.max_bytes is not None:
        item["maxLength"] = limits.max_bytes  # characters, of which some take several bytes
    if limits.pattern is not None:
        item["pattern"] = f"^(?:{limits.pattern})$"
    whole: dict[str, object] = {"type": "array", "items": item}
    return whole if limits.max_values is None else {**whole, "maxItems": limits.max_values}


@dataclass(slots=True)
class Contributions:
    """One stream's contributions by control key; what is asked for is their union.

    Each team, tenant or service publishes its own key and never has to read, merge and write back.
    """

    _by_key: dict[bytes, Contribution] = field(default_factory=dict)
    _union: PredicateSet | None = None  # as long as nothing changed

    def put(self, key: bytes, contribution: Contribution | None) -> None:
        """Replace what *key* contributes; None removes it."""
        self._union = None
        if contribution is None:
            self._by_key.pop(key, None)
        else:
            self._by_key[key] = contribution

    def get(self, key: bytes) -> Contribution | None:
        """Return what *key* contributes."""
        return self._by_key.get(key)

    def by_key(self) -> dict[bytes, Contribution]:
        """Return what each key contributes."""
        return dict(self._by_key)

    def union(self) -> PredicateSet:
        """Return what all contributions that are not paused ask for together."""
        if self._union is None:
            lively = (one.predicates for one in self._by_key.values() if not one.is_paused)
            self._union = PredicateSet.union(lively)
        return self._union


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise PredicatesRejected("duplicate_member", f"{twice!r} stands twice", _pointer(twice))
    return members


def _pointer(name: str) -> str:
    """Return the pointer to a member, in text that any encoder takes: JSON can spell lone surrogates."""
    escaped = name.replace("~", "~0").replace("/", "~1")
    return "/" + escaped.encode(errors="backslashreplace").decode()


def _no_constant(constant: str) -> object:
    raise PredicatesRejected("not_json", f"{constant} is not JSON")


def _term(term: object, limits: Limits, pointer: str) -> str:
    if not isinstance(term, str):
        raise PredicatesRejected("not_a_string", "expected a string", pointer)
    term = term.strip()
    if not term:
        raise PredicatesRejected("empty_term", "a predicate cannot be empty", pointer)
    if _UNPRINTABLE.search(term):
        raise PredicatesRejected("control_character", "control characters are refused", pointer)
    if not term.isascii():
        try:
            term.encode()
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
            raise PredicatesRejected("not_unicode", "a lone surrogate", pointer) from None
        term = unicodedata.normalize("NFC", term)  # what looks the same is the same
    if limits.lower_case:
        term = unicodedata.normalize("NFC", term.lower())
    if limits.max_bytes is not None and len(term.encode()) > limits.max_bytes:
        raise PredicatesRejected("too_long", f"the upstream takes {limits.max_bytes} bytes", pointer)
    if limits.pattern is not None and not re.fullmatch(limits.pattern, term, re.ASCII):
        raise PredicatesRejected("no_match", f"the upstream takes {limits.pattern}", pointer)
    return term
