"""Writes the parts of the documentation that the code knows best, between their markers.

``make docs`` runs it; a test fails where a page is behind the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

from connector.errors import (
    BadStatus,
    Disconnected,
    EndedByServer,
    FramingLost,
    RulesRefused,
    Stalled,
    Unreachable,
    Unsendable,
    WrongContent,
)
from connector.stream import dialect
from connector.stream.dialect import Delays, Dialect
from connector.stream.policy import Outcome, classify

PAGE = Path(__file__).parent / "reader.md"

CLASSES = {
    Outcome.NETWORK: "at once if the connection was healthy, else by the network rule",
    Outcome.ENDED: "at once if the connection was healthy, else by the network rule",
    Outcome.REPLACED: "the same; expected while the connector's own newer connection takes over",
    Outcome.HTTP: "by the HTTP rule, or as `Retry-After` asks if that is longer",
    Outcome.RATE_LIMITED: "by its own rule, or as `Retry-After` or `x-rate-limit-reset` asks if longer",
    Outcome.CROWDED: "the same; a second connection gives way, and is not tried again",
    Outcome.REFUSED: "when predicates, credentials or the configuration change, or after a long time",
}

FAILURES: list[tuple[str, Disconnected]] = [
    ("no address, no TCP, no TLS, no proxy, no credentials to send", Unreachable("")),
    ("no answer, or headers that never end; silence within the body", Stalled("")),
    ("the stream ends, is reset or is cut, with or without an error", Disconnected("")),
    ("bytes that are no frames, damaged compression, a compression bomb", FramingLost("")),
    ("the server announces that it closes the connection", EndedByServer("")),
    ("an HTML page, or a content coding nobody asked for, with 200", WrongContent("", is_declared=False)),
    ("a rule that the upstream does not take", RulesRefused("", "")),
    ("another media type than the dialect's, with 200", WrongContent("", is_declared=True)),
    ("the name leads to a link-local or metadata address", Unsendable("")),
]


def policy() -> Iterator[str]:
    """Yield the table of failures, and what is done about each."""
    manners = dialect.load("twitter-v1", {})
    yield "| what happened | class | the next attempt comes |"
    yield "|---|---|---|"
    rows = [(what, classify(error, manners)) for what, error in FAILURES]
    for outcome in (Outcome.RATE_LIMITED, Outcome.REFUSED):
        found = [status for status in range(201, 600) if classify(BadStatus(status), manners) is outcome]
        rows.append((f"status {', '.join(map(str, found))}", outcome))
    rows.append(("any other status but 200", classify(BadStatus(503), manners)))
    assert manners.messages.disconnect is not None
    codes = ", ".join(map(str, manners.messages.disconnect.refused))
    refusal = classify(EndedByServer("", codes.partition(",")[0]), manners)
    rows.append((f"announced with a code that the dialect calls a refusal (`twitter-v1`: {codes})", refusal))
    codes = ", ".join(map(str, manners.messages.disconnect.replaced))
    replaced = classify(EndedByServer("", codes.partition(",")[0]), manners)
    rows.append((f"announced because of a newer connection (`twitter-v1`: {codes})", replaced))
    crowded = manners.policy.too_many_connections or ""
    one_too_many = classify(BadStatus(420, crowded), manners)
    rows.append((f"an answer that says one connection too many (`twitter-v1`: {crowded})", one_too_many))
    for outcome in Outcome:
        for what, its in rows:
            if its is outcome:
                yield f"| {what} | `{outcome.value}` | {CLASSES[outcome]} |"


def numbers() -> Iterator[str]:
    """Yield the table of the dialects' numbers."""
    manners = {name: dialect.load(name, {}) for name in dialect.names()}
    yield f"| | {' | '.join(f'`{name}`' for name in manners)} |"
    yield f"|---|{'---|' * len(manners)}"
    rows = {
        "network rule": lambda one: _delays(one.backoff.network),
        "HTTP rule": lambda one: _delays(one.backoff.http),
        "rate-limit rule": lambda one: _delays(one.backoff.rate_limited),
        "after a refusal": lambda one: f"{one.policy.retry_refused_after_s:g}",
        "stall": lambda one: f"{one.liveness.stall_timeout_s:g}",
        "address, TCP and TLS": lambda one: f"{one.liveness.connect_timeout_s:g}",
        "headers": lambda one: f"{one.liveness.headers_timeout_s:g}",
        "healthy after": lambda one: f"{one.liveness.healthy_after_s:g}",
        "connect budget": _budget,
        "strategy": lambda one: one.handover.strategy,
    }
    for what, cell in rows.items():
        yield f"| {what} | {' | '.join(cell(one) for one in manners.values())} |"


def _delays(rule: Delays) -> str:
    exact = rule.model_copy(update={"jitter": 0.0}).backoff().delays(Random(0))
    first = list(islice(exact, 5))
    return f"{' '.join(f'{delay_s:g}' for delay_s in first)} … {rule.cap_s:g}"


def _budget(manners: Dialect) -> str:
    budget = manners.budget
    return "none" if budget is None else f"{budget.attempts} in {budget.window_s:g}"


def generated(page: str) -> str:
    """Return *page* with what stands between its markers made anew."""
    for name, lines in (("policy", policy()), ("numbers", numbers())):
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->"
        text = begin + "\n".join(lines) + "\n" + end
        page = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _, text=text: text, page, flags=re.DOTALL
        )
    return page


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text("utf-8")), "utf-8")
