"""How a stream is, for whoever asks at ``/status``."""

from __future__ import annotations

from dataclasses import asdict

from connector.delivery.promise import Promise
from connector.subscription import Subscription


def status(promised: Promise, subscription: Subscription | None, state: str) -> dict[str, object]:
    """Return it as a JSON object.

    Args:
        promised: what is promised of it.
        subscription: None while it does not run here.
        state: what is going on then.
    """
    told: dict[str, object] = {"state": state, "promise": asdict(promised)}
    if subscription is not None:
        in_force = subscription.demand.in_force
        told |= {
            "state": subscription.phase.name.lower(),
            "live": subscription.is_live,
            "trouble": subscription.trouble,
            "predicates": None if in_force is None else in_force.as_dict(),
            "cursor": subscription.outlet.cursor,
            "heard_at": subscription.outlet.heard_at,
        }
    return told
