"""Who may connect, and how often. Pure: the caller owns the clock."""

from __future__ import annotations

import base64
import hmac
from collections import defaultdict, deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Account:
    """The one user of this upstream, with the two ways to prove it."""

    user: str
    password: str
    token: str

    def authenticate(self, authorization: str) -> str | None:
        """Return the user whom an Authorization header names, None if it proves nobody."""
        scheme, _, proof = authorization.strip().partition(" ")
        basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        expected = {"basic": basic, "bearer": self.token}.get(scheme.lower())
        if expected is None:
            return None
        known = hmac.compare_digest(proof.strip().encode(), expected.encode())
        return self.user if known else None


@dataclass(slots=True)
class ConnectLimit:
    """Limits the connection attempts of each user in a sliding window.

    Attributes:
        connects: attempts allowed within the window.
        window_s: its length in seconds.
    """

    connects: int
    window_s: float
    _attempts_at: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(deque), init=False
    )

    def admit(self, user: str, now: float) -> bool:
        """Count an attempt and say whether it is allowed; refused ones count as well."""
        attempts_at = self._attempts_at[user]
        while attempts_at and attempts_at[0] <= now - self.window_s:
            attempts_at.popleft()
        attempts_at.append(now)
        return len(attempts_at) <= self.connects
