"""Requests for rules and the answers to them, in JSON. Pure: the caller owns both clocks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .problems import invalid_request, rejected_rule, rules_cap_exceeded
from .rules import CapExceeded, Draft, Rule, Rulebook

if TYPE_CHECKING:
    from collections.abc import Iterable

    Answer = tuple[int, dict[str, object]]


def list_rules(rulebook: Rulebook, sent: str) -> dict[str, object]:
    """Return the rules in force; *sent* is the time of day, as the answer shall spell it."""
    rules = rulebook.in_force()
    return _data(rules) | {"meta": {"sent": sent, "result_count": len(rules)}}


def change_rules(rulebook: Rulebook, body: bytes, published: int, sent: str) -> Answer:
    """Do what a request asks for, from the status after *published* on.

    Returns:
        The HTTP status and the answer.
    """
    match _parse(body):
        case {"add": list(items), **rest} if not rest and items:
            drafts = [draft for item in items if (draft := _draft(item))]
            if len(drafts) == len(items):
                return _add(rulebook, drafts, published, sent)
        case {"delete": {"ids": list(ids), **others}, **rest} if not rest and not others and ids:
            if all(isinstance(id_, str) for id_ in ids):
                return _delete(rulebook, ids, published, sent)
    return 400, invalid_request("Either add, a list of rules, or delete, with a list of ids, is needed.")


def _add(rulebook: Rulebook, drafts: list[Draft], published: int, sent: str) -> Answer:
    try:
        created, rejected = rulebook.add(drafts, published)
    except CapExceeded:
        # Clients find this title at the top of an answer that is an error. Which one is not told
        # anywhere, nor is what becomes of the rules that would still fit: both are made up here.
        return 422, rules_cap_exceeded(rulebook.max_rules)
    summary = {
        "created": len(created),
        "not_created": len(rejected),
        "valid": len(created),
        "invalid": len(rejected),
    }
    answer = _data(created) | {"meta": {"sent": sent, "summary": summary}}
    if rejected:
        answer["errors"] = [rejected_rule(one) for one in rejected]
    # What is there already does no harm: only rules that cannot be understood make an error.
    in_vain = not created and any(one.flaws for one in rejected)
    return 400 if in_vain else 201, answer


def _delete(rulebook: Rulebook, ids: list[str], published: int, sent: str) -> Answer:
    unknown = rulebook.delete(ids, published)
    summary = {"deleted": len(ids) - len(unknown), "not_deleted": len(unknown)}
    answer: dict[str, object] = {"meta": {"sent": sent, "summary": summary}}
    if unknown:
        answer["errors"] = [invalid_request("Rule does not exist", ids=[id_]) for id_ in unknown]
    return 200, answer


def _parse(body: bytes) -> object:
    try:
        parsed: object = json.loads(body)
        json.dumps(parsed, ensure_ascii=False).encode()  # half a surrogate pair could not be sent back
    except (ValueError, RecursionError):
        return None
    return parsed


def _draft(item: object) -> Draft | None:
    match item:
        case {"value": str(value), "tag": str(tag), **rest} if not rest:
            return Draft(value, tag)
        case {"value": str(value), **rest} if not rest:
            return Draft(value)
    return None


def _data(rules: Iterable[Rule]) -> dict[str, object]:
    data = [
        {"id": rule.id, "value": rule.value} | ({} if rule.tag is None else {"tag": rule.tag})
        for rule in rules
    ]
    return {"data": data} if data else {}
