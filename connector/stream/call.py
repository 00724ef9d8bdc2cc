"""Predicates and a cursor as the request that asks an upstream for them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import orjson

from connector.model import PredicateSet
from connector.stream.dialect import Dialect, Resume


@dataclass(frozen=True, slots=True)
class Call:
    """One request, but for its address and its credentials.

    Attributes:
        query: to be added to the address's own; encoded.
        form: whether the body is a form, which some signatures cover.
        rules: what must be the upstream's rules before it is sent; None where it has none.
    """

    method: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    form: bool = False
    rules: Sequence[str] | None = None


def since(resume: Resume, heard_at: float, now: float) -> str:
    """Return how to ask for what was sent after *heard_at*; both times are in seconds since the epoch."""
    at = min(now, heard_at) - resume.margin_s
    if resume.reaches_back_s is not None:
        at = max(at, now - resume.reaches_back_s)
    match resume.since:
        case "minutes_ago":
            return str(math.ceil((now - at) / 60))
        case "rfc3339":
            when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
            return when.replace("+00:00", "Z")
        case "milliseconds":
            return str(int(at * 1000))
        case _:
            return str(int(at))


def call(dialect: Dialect, predicates: PredicateSet, cursor: str | None) -> Call:
    """Return the request that asks for *predicates* after *cursor*, a status or a time as it is written."""
    request, resume = dialect.request, dialect.resume
    headers = dict(request.headers)
    if dialect.response.media_types:
        headers.setdefault("Accept", ", ".join(dialect.response.media_types))
    fields: dict[str, str | list[str]] = dict(request.parameters)
    rules = None if dialect.rules is None else predicates.as_dict().get(dialect.rules.predicate, [])
    for name, values in predicates.terms if rules is None else ():
        parameter = request.predicates[name].parameter or name
        fields[parameter] = list(values) if request.separator is None else request.separator.join(values)
    if resume is not None and cursor:
        if resume.header is not None:
            headers[resume.header] = cursor
        elif resume.parameter is not None:
            fields[resume.parameter] = cursor
    if request.encoding == "query":
        return Call(request.method, urlencode(fields, doseq=True), headers, rules=rules)
    if request.encoding == "form":
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = urlencode(fields, doseq=True).encode()
        return Call(request.method, "", headers, body, form=True, rules=rules)
    headers["Content-Type"] = "application/json"
    return Call(request.method, "", headers, orjson.dumps(fields), rules=rules)
