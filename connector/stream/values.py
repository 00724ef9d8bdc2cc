"""What values a dialect may have. Pure."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

JsonPointer = Annotated[str, Field(pattern=r"^(/[^/]+)+$")]
"""Where a member stands in a message (RFC 6901), e.g. ``/user/id_str`` or ``/errors/0``."""

_OWN_HEADERS = frozenset(
    [
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
    ]
)


def _header(name: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise ValueError(f"{name!r} is no header name")
    if name.lower() in _OWN_HEADERS:
        raise ValueError(f"the connector sets {name} itself")
    return name


def _header_value(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("a header holds printable ASCII only")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


def _media_type(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+", text.lower()):
        raise ValueError(f"{text!r} is no media type like text/event-stream, without parameters")
    return text.lower()


HeaderName = Annotated[str, AfterValidator(_header)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Pattern = Annotated[str, AfterValidator(_pattern)]
MediaType = Annotated[str, AfterValidator(_media_type)]
Status = Annotated[int, Field(ge=200, le=599)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
