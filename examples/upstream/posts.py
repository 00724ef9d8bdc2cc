"""What the filtered stream carries: statuses that match a rule, in the form of v2. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from .framing import frame_by_crlf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .rules import Rule, Rulebook
    from .statuses import Status

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Posts:
    """What the connections of the filtered stream get: it hangs on the rules alone."""

    rulebook: Rulebook

    def body(self, status: Status) -> bytes | None:
        """Return the message about a status, None if it matches no rule."""
        rules = self.rulebook.matching(status)
        return post(status, rules) if rules else None

    def frame(self, body: bytes) -> bytes:
        """Lay a message out."""
        return frame_by_crlf(body)


def post(status: Status, rules: Iterable[Rule]) -> bytes:
    """Return a status as v2 shows it, with the rules that it matches.

    Its padding comes along, and so does a line feed between members.
    """
    members = json.loads(status.body)
    data = {
        "id": members["id_str"],
        "text": members["text"],
        "edit_history_tweet_ids": [members["id_str"]],
        "author_id": members["user"]["id_str"],
        "created_at": _iso(members["created_at"]),
        "lang": members["lang"],
        "seq": members["seq"],
    }
    if padding := members.get("padding"):
        data["padding"] = padding
    matching = [{"id": rule.id, "tag": rule.tag or ""} for rule in rules]
    body = _encode({"data": data, "matching_rules": matching}).encode()
    return body.replace(b',"text":', b',\n"text":', 1) if b"\n" in status.body else body


def _iso(created_at: str) -> str:
    when = datetime.strptime(created_at, "%a %b %d %H:%M:%S %z %Y")
    return when.strftime("%Y-%m-%dT%H:%M:%S.000Z")
