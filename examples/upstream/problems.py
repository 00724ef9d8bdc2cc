"""What the v2 endpoints answer when something is wrong. Pure.

Titles, types and members are those that clients of the real thing look for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rules import Rejected

_TYPES = "https://api.twitter.com/2/problems/"

UNAUTHORIZED: dict[str, object] = {
    "title": "Unauthorized",
    "type": "about:blank",
    "status": 401,
    "detail": "Unauthorized",
}
TOO_MANY_REQUESTS: dict[str, object] = {
    "title": "Too Many Requests",
    "type": "about:blank",
    "status": 429,
    "detail": "Too Many Requests",
}
TOO_MANY_CONNECTIONS: dict[str, object] = {
    "title": "ConnectionException",
    "detail": "This stream is currently at the maximum allowed connection limit.",
    "connection_issue": "TooManyConnections",
    "type": _TYPES + "streaming-connection",
}


def rules_cap_exceeded(max_rules: int) -> dict[str, object]:
    """Return the answer to a request that would make too many rules; its detail is made up."""
    return {
        "title": "RulesCapExceeded",
        "detail": f"There can be at most {max_rules} rules.",
        "type": _TYPES + "rule-cap",
    }


def rejected_rule(rejected: Rejected) -> dict[str, object]:
    """Return what is said about one rule that was not created."""
    if rejected.twin_id is not None:
        return {
            "value": rejected.value,
            "id": rejected.twin_id,
            "title": "DuplicateRule",
            "type": _TYPES + "duplicate-rules",
        }
    return {
        "value": rejected.value,
        "details": list(rejected.flaws),
        "title": "UnprocessableEntity",
        "type": _TYPES + "invalid-rules",
    }


def invalid_request(message: str, **parameters: list[str]) -> dict[str, object]:
    """Return what is said about a request, or a part of one, that makes no sense."""
    return {
        "errors": [{"parameters": parameters, "message": message}],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": _TYPES + "invalid-request",
    }
