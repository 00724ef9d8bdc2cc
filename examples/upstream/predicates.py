"""What a connection asks for: phrases to track, users to follow. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .statuses import Status


@dataclass(frozen=True, slots=True)
class Predicates:
    """Phrases and users, all of them OR-ed.

    Attributes:
        words: phrases of one word, case-folded; apart from the others because one set
            operation answers for all of them.
        phrases: phrases of several words, each of which must be in the text, in any order.
        users: ids of the users to follow.
    """

    words: frozenset[str]
    phrases: frozenset[frozenset[str]]
    users: frozenset[str]

    @classmethod
    def parse(cls, track: str, follow: str) -> Predicates:
        """Read two comma lists; empty items count for nothing."""
        phrases = {read_phrase(phrase) for phrase in track.split(",")}
        return cls(
            words=frozenset(word for phrase in phrases if len(phrase) == 1 for word in phrase),
            phrases=frozenset(phrase for phrase in phrases if len(phrase) > 1),
            users=frozenset(user.strip() for user in follow.split(",")) - {""},
        )

    @property
    def track_count(self) -> int:
        """How many different phrases are tracked."""
        return len(self.words) + len(self.phrases)

    def match(self, status: Status) -> bool:
        """Say whether the status is asked for."""
        return (
            status.user_id in self.users
            or not self.words.isdisjoint(status.words)
            or any(holds(status, phrase) for phrase in self.phrases)
        )


def read_phrase(text: str) -> frozenset[str]:
    """Return the words of a phrase, case-folded."""
    return frozenset(text.casefold().split())


def holds(status: Status, phrase: frozenset[str]) -> bool:
    """Say whether all words of a phrase are in the text of a status, in any order."""
    return phrase <= status.words
