"""What is wrong right now, said once per change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

log = structlog.get_logger("connector.health")


class Health:
    """Reports of the parts that readiness depends on."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}
        self._checks: list[Callable[[], Iterable[str]]] = []

    def report(self, part: str, trouble: str | None) -> None:
        """Note what is wrong with *part*, or None for nothing; logged when it changes."""
        before = self._troubles.get(part)
        if trouble == before:
            return
        if trouble is None:
            del self._troubles[part]
            log.info("health.recovered", part=part)
        else:
            self._troubles[part] = trouble
            log.warning("health.degraded", part=part, trouble=trouble)

    def check(self, troubles: Callable[[], Iterable[str]]) -> None:
        """Ask *troubles* whenever readiness is asked for."""
        self._checks.append(troubles)

    def troubles(self) -> list[str]:
        """Return all that stands against readiness."""
        reported = [f"{part}: {trouble}" for part, trouble in self._troubles.items()]
        return [*reported, *(trouble for check in self._checks for trouble in check())]
