"""The statuses themselves: a pure function of a seed and a sequence number.

Nothing is stored and no clock is read, so a replay, a ledger and an independent test all see
the same bytes. Hashing takes the place of a random generator: seeding one costs more than the
rest of a status.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from json import JSONEncoder

TOPICS = (
    *("kafka", "redpanda", "debezium", "flink", "python", "rust", "spark", "postgres"),
    *("clickhouse", "kubernetes", "airflow", "iceberg", "pulsar", "duckdb", "grafana", "trino"),
)
USER_IDS = tuple(str(10_000_019 + 7_919 * k) for k in range(20))

_FILLER = (
    *("the", "a", "our", "their", "this", "new", "old", "fast", "slow", "late", "shiny", "quiet"),
    *("pipeline", "cluster", "release", "talk", "bug", "patch", "broker", "team", "night", "log"),
    *("reads", "writes", "ships", "breaks", "scales", "waits", "today", "again", "with", "without"),
)
# What trips a careless client: characters that look like line ends, or need escaping.
_ENDINGS = (
    *("", "", "", "", "", "", ""),
    " \N{ROCKET}\N{WHITE HEAVY CHECK MARK}",
    "\N{LINE SEPARATOR}see you there",
    "\N{NEXT LINE}as they say",
    ' "quoted"',
    " back\\slash",
    "\r\non two lines",
    " \N{HIRAGANA LETTER KA}\N{HIRAGANA LETTER HU}\N{HIRAGANA LETTER KA}",
)
_LANGS = ("en", "en", "en", "de", "fr", "ja", "und")
_FIRST_ID = 1_500_000_000_000_000_000
_FIRST_CREATED_AT_S = 1_500_000_000
_WORD = re.compile(r"\w+")
_encode = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Status:
    """One status, as it travels and as it is matched.

    Attributes:
        seq: its place in the stream, counted from 1.
        id: its identity; larger than what a float holds exactly.
        body: the JSON object in UTF-8; may hold a bare line feed as white space, never CRLF.
        words: the words of its text, case-folded.
        user_id: who wrote it.
    """

    seq: int
    id: int
    body: bytes
    words: frozenset[str]
    user_id: str


@lru_cache(maxsize=4096)
def status(seed: int, n: int, min_bytes: int = 0) -> Status:
    """Return the n-th status of a seed, its body padded to at least min_bytes."""
    draw = blake2b(b"%d:%d" % (seed, n), digest_size=32).digest()
    # The high bits grow with n, as in a snowflake; the low ones get lost in a float.
    id_ = _FIRST_ID + (n << 22) + int.from_bytes(draw[20:23], "big") % (1 << 22)
    text = _text(draw)
    user_id = USER_IDS[draw[16] % len(USER_IDS)]
    members: dict[str, object] = {
        "created_at": _created_at(n),
        "id": id_,
        "id_str": str(id_),
        "seq": n,
        "text": text,
        "user": {"id": int(user_id), "id_str": user_id, "screen_name": f"user_{user_id}"},
        "lang": _LANGS[draw[17] % len(_LANGS)],
    }
    body = _encode(members).encode()
    if len(body) < min_bytes:
        members["padding"] = "x" * max(0, min_bytes - len(body) - len(',"padding":""'))
        body = _encode(members).encode()
    if draw[19] % 16 == 0:
        # Real upstreams do this inside streams delimited by CRLF.
        body = body.replace(b',"text":', b',\n"text":', 1)
    return Status(n, id_, body, frozenset(_WORD.findall(text.casefold())), user_id)


def _text(draw: bytes) -> str:
    words = [_FILLER[byte % len(_FILLER)] for byte in draw[6 : 9 + draw[5] % 8]]
    for k in range(1 + draw[0] % 4):
        topic = TOPICS[draw[1 + k] % len(TOPICS)]
        place = draw[24 + k]
        words.insert(place % (len(words) + 1), topic.title() if place >= 192 else topic)
    return " ".join(words) + _ENDINGS[draw[18] % len(_ENDINGS)]


def _created_at(n: int) -> str:
    # A pure function cannot know the publishing rate, so one status a second it is.
    return time.strftime("%a %b %d %H:%M:%S +0000 %Y", time.gmtime(_FIRST_CREATED_AT_S + n))
