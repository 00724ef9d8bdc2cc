"""What a stream shall ask its upstream for. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from connector.model import PredicateSet


@dataclass(slots=True)
class Wanted:
    """The newest predicates; and what to go on with where the upstream refuses just those.

    Attributes:
        newest: what all publishers together ask for.
        in_force: what the live connection asked for last; None before the first.
    """

    newest: PredicateSet = field(default_factory=PredicateSet)
    in_force: PredicateSet | None = None
    _refused: tuple[PredicateSet, object] | None = None

    def change(self, newest: PredicateSet) -> None:
        """Take other predicates: whatever was refused before may be asked for again."""
        self.newest = newest
        self._refused = None

    def refused(self, asked: PredicateSet, proof: object) -> bool:
        """Take note that *asked* was refused to who proved its identity by *proof*.

        Returns:
            Whether there is something else to go on with. Not where that is refused as well: the two are
            tried in turn then.
        """
        can_go_on = self.in_force is not None and self.in_force != asked
        self._refused = (asked, proof) if can_go_on else None
        return can_go_on

    def ask(self, proof: object) -> PredicateSet:
        """Return what a connection that shall live asks for: what works, if the newest is refused."""
        if self.in_force is not None and self._refused == (self.newest, proof):
            return self.in_force
        return self.newest
