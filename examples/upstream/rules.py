"""The rules of the filtered stream: which there are, and which were in force for a status. Pure.

A rule is in force for what is published between its creation and its deletion. None is ever
forgotten: which rules a status matches depends on its number, and not on when that is asked.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .predicates import holds, read_phrase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .statuses import Status

MAX_VALUE_CHARS = 1_024
# Words are all that is understood. Grouping does not matter where all of them must be there.
_GROUPING = str.maketrans('()"', "   ")


class CapExceeded(Exception):
    """There would be too many rules; none of the request was created."""


@dataclass(slots=True)
class Rule:
    """A rule that was created, and maybe deleted since.

    Attributes:
        id: counted from 1, never used again.
        value: what was asked for, as the request spelled it.
        phrase: the same as words.
        first_seq: the first status that it was in force for.
        last_seq: the last one; None until it is deleted, less than first_seq if there was none.
    """

    id: str
    value: str
    tag: str | None
    phrase: frozenset[str]
    first_seq: int
    last_seq: int | None = None

    def is_in_force_for(self, seq: int) -> bool:
        """Say whether the rule was there when a status was published."""
        return self.first_seq <= seq and (self.last_seq is None or seq <= self.last_seq)


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule that somebody asks for."""

    value: str
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A draft that became no rule: it has flaws, or there is a rule with its value already.

    Attributes:
        twin_id: the rule with that value.
    """

    value: str
    flaws: tuple[str, ...] = ()
    twin_id: str | None = None


@dataclass(slots=True)
class Rulebook:
    """All rules there ever were, oldest first.

    Attributes:
        max_rules: how many may be in force at once.
    """

    max_rules: int
    rules: list[Rule] = field(default_factory=list, init=False)
    _in_force: dict[str, Rule] = field(default_factory=dict, init=False)  # by value
    # By any one word, since a status has few words, and there may have been many rules.
    _by_word: defaultdict[str, list[Rule]] = field(default_factory=lambda: defaultdict(list), init=False)

    def in_force(self) -> list[Rule]:
        """Return the rules that the status published next is held against, oldest first."""
        return list(self._in_force.values())

    def add(self, drafts: Iterable[Draft], published: int) -> tuple[list[Rule], list[Rejected]]:
        """Create what can be created, in force from the status after *published* on.

        Raises:
            CapExceeded: nothing was created, for it would be too much.
        """
        created: dict[str, Rule] = {}
        rejected = []
        for draft in drafts:
            value = draft.value
            if twin := self._in_force.get(value) or created.get(value):
                rejected.append(Rejected(value, twin_id=twin.id))
            elif flaws := _flaws(value):
                rejected.append(Rejected(value, flaws))
            else:
                id_ = str(len(self.rules) + len(created) + 1)
                created[value] = Rule(id_, value, draft.tag, _read(value), published + 1)
        if len(self._in_force) + len(created) > self.max_rules:
            raise CapExceeded
        self._in_force |= created
        self.rules += created.values()
        for rule in created.values():
            self._by_word[min(rule.phrase)].append(rule)
        return list(created.values()), rejected

    def delete(self, ids: Iterable[str], published: int) -> list[str]:
        """Delete rules, in force up to the status *published*, and return the ids of no rule."""
        rule_of = {rule.id: rule for rule in self._in_force.values()}
        unknown = []
        for id_ in ids:
            if rule := rule_of.pop(id_, None):
                rule.last_seq = published
                del self._in_force[rule.value]
            else:
                unknown.append(id_)
        return unknown

    def matching(self, status: Status) -> list[Rule]:
        """Return the rules that a status matches of those in force for it, oldest first."""
        candidates = (rule for word in status.words for rule in self._by_word.get(word, ()))
        found = [c for c in candidates if c.is_in_force_for(status.seq) and holds(status, c.phrase)]
        return sorted(found, key=lambda rule: int(rule.id))

    def as_json(self) -> list[dict[str, object]]:
        """Return all rules there ever were as plain objects."""
        names = ("id", "value", "tag", "first_seq", "last_seq")
        return [{name: getattr(rule, name) for name in names} for rule in self.rules]


def _read(value: str) -> frozenset[str]:
    return read_phrase(value.translate(_GROUPING))


def _flaws(value: str) -> tuple[str, ...]:
    flaws = []
    if not _read(value):
        flaws.append("Rules must contain at least one word")
    if len(value) > MAX_VALUE_CHARS:
        flaws.append(f"Rules must be at most {MAX_VALUE_CHARS} characters long")
    if value.count('"') % 2:
        flaws.append("Quotes must be closed")
    if not _is_balanced(value):
        flaws.append("Parentheses must be balanced")
    return tuple(flaws)


def _is_balanced(value: str) -> bool:
    depth = 0
    for part in value.split('"')[::2]:  # what stands between quotes groups nothing
        for character in part:
            depth += (character == "(") - (character == ")")
            if depth < 0:
                return False
    return depth == 0
