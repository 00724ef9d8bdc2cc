"""Predicates that the upstream keeps as rules, and how they become the wanted ones. Never speaks HTTP.

As X's API v2 has them: GET lists the rules, POST adds or deletes some, and the stream follows without a new
connection. The rules belong to the upstream's app, and the connector owns all of them: whatever rule it finds
and does not want, it deletes. Two streams need two apps.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import msgspec
import orjson

from connector.errors import BadStatus, Disconnected, RulesRefused, WrongContent

MAX_BODY_BYTES = 8 << 20
"""Longest answer read: a thousand of X's longest rules, each with its tag, are 2 MB."""

_MAX_PAGES = 100  # a server may name a next one for ever

_SAID_BYTES = 200
_DONE = frozenset({200, 201})
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class Rule(NamedTuple):
    """One rule, as the upstream has it."""

    id: str
    value: str


class Diff(NamedTuple):
    """What makes the upstream's rules the wanted ones: values to add, ids to delete, both sorted."""

    add: Sequence[str]
    delete: Sequence[str]


class Added(NamedTuple):
    """What became of rules that were to be added.

    Attributes:
        created: ids of those that were not there before.
        doubles: ids of those that were; empty ones where the upstream does not say which.
        refused: why others were not created; None where none was refused.
    """

    created: Sequence[str]
    doubles: Sequence[str]
    refused: RulesRefused | None


class Exchange(Protocol):
    """Sends one request to where the rules are."""

    async def __call__(self, method: str, query: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer with 200, 201, 400 or 422; the body sent is JSON, or empty.

        Raises:
            Disconnected: in one of its kinds, any other status among them.
        """
        ...


class _Listed(msgspec.Struct):
    id: str
    value: str


class _Answer(msgspec.Struct):
    data: list[_Listed] | None = None
    errors: list[dict[str, Any]] | None = None
    meta: dict[str, Any] | None = None


def diff(there: Sequence[Rule], wanted: Sequence[str]) -> Diff:
    """Return what to add to the rules *there*, and what to delete of them; of doubles one stays."""
    values = set(wanted)
    kept = {rule.value: rule.id for rule in sorted(there, reverse=True) if rule.value in values}
    return Diff(sorted(values - kept.keys()), sorted({rule.id for rule in there} - set(kept.values())))


def read_list(status: int, body: bytes) -> tuple[Sequence[Rule], str | None]:
    """Return one page of the list, and the token of the next one.

    Raises:
        Disconnected: it is no list; another attempt may bring one.
    """
    if status != 200:
        raise BadStatus(status, _beginning(body))
    answer = _read(status, body)
    if answer.errors and answer.data is None:  # not "no rules": that would add them all again
        raise WrongContent(f"no list of rules: {_words(answer.errors[0])}", is_declared=False)
    token = (answer.meta or {}).get("next_token")
    return [Rule(one.id, one.value) for one in answer.data or ()], str(token) if token else None


def read_added(status: int, body: bytes) -> Added:
    """Return what became of rules that were to be added.

    Raises:
        Disconnected: the answer does not say; another attempt may.
    """
    answer = _read(status, body)
    errors = answer.errors or []
    if status not in _DONE and not errors:
        raise BadStatus(status, _beginning(body))
    doubles = [one for one in errors if one.get("title") == "DuplicateRule"]
    others = [one for one in errors if one not in doubles]
    return Added(
        sorted(one.id for one in answer.data or ()),
        [str(one.get("id") or "") for one in doubles],
        RulesRefused(str(others[0].get("value") or ""), _words(others[0])) if others else None,
    )


async def sync(exchange: Exchange, wanted: Sequence[str], most: int | None) -> None:
    """Make *wanted* the upstream's rules, in as few calls as that takes.

    New rules come before old ones go, so what both match keeps flowing; the other way round only where the
    upstream, which takes *most* rules, has no room for both. What fails half-way, the next call mends.

    Raises:
        RulesRefused: the upstream refuses one of them. What this call created is gone again.
        Disconnected: in another of its kinds; another attempt may work.
    """
    there = await _list(exchange)
    add, delete = diff(there, wanted)
    if most is not None and len(there) + len(add) > most:
        await _delete(exchange, delete)
        delete = ()
    doubles = await _add(exchange, add) if add else ()
    # What the upstream takes for the double of a wanted rule, however it is spelled, is what is wanted.
    await _delete(exchange, [one for one in delete if one not in doubles])


async def _list(exchange: Exchange) -> Sequence[Rule]:
    rules, query = list[Rule](), ""
    for _ in range(_MAX_PAGES):
        page, token = read_list(*await exchange("GET", query, b""))
        rules += page
        if token is None:
            return rules
        query = urlencode({"pagination_token": token})
    raise WrongContent(f"a list of rules with more than {_MAX_PAGES} pages", is_declared=False)


async def _add(exchange: Exchange, values: Sequence[str]) -> Sequence[str]:
    """Add rules; return the ids of those that were there already, under another spelling."""
    # The tag is what a post names of the rules it matched.
    body = orjson.dumps({"add": [{"value": value, "tag": value} for value in values]})
    added = read_added(*await exchange("POST", "", body))
    if added.refused is not None:
        with suppress(Disconnected):  # what stays is deleted by whatever is wanted next
            await _delete(exchange, added.created)
        raise added.refused
    if (made := len(added.created) + len(added.doubles)) < len(values):
        raise WrongContent(f"only {made} of {len(values)} rules were created", is_declared=False)
    return added.doubles


async def _delete(exchange: Exchange, ids: Sequence[str]) -> None:
    """Delete rules; those that are gone already are no failure."""
    while ids:
        status, body = await exchange("POST", "", orjson.dumps({"delete": {"ids": list(ids)}}))
        if status in _DONE and not _read(status, body).errors:
            return
        # One that was gone may have saved the others: those that are left are asked for again.
        there = {rule.id for rule in await _list(exchange)}
        left = [one for one in ids if one in there]
        if len(left) == len(ids):
            raise WrongContent(f"rules stay: HTTP {status}: {_beginning(body)}", is_declared=False)
        ids = left


def _read(status: int, body: bytes) -> _Answer:
    try:
        body.decode()  # msgspec skips members it does not need without looking at their UTF-8
        return msgspec.json.decode(body, type=_Answer)
    except _UNREADABLE as error:
        if status not in _DONE:
            raise BadStatus(status, _beginning(body)) from None
        raise WrongContent(f"no answer about rules: {str(error)[:_SAID_BYTES]}", is_declared=False) from None


def _words(problem: dict[str, Any]) -> str:
    """Return what the upstream says of a problem; X has its words in one of several places."""
    places = ("details", "detail", "message", "title")
    words = next((problem[place] for place in places if problem.get(place)), "")
    return "; ".join(map(str, words)) if isinstance(words, list) else str(words)


def _beginning(body: bytes) -> str:
    return " ".join(body[:_SAID_BYTES].decode(errors="replace").split())
