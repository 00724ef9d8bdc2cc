"""What is wrong right now, said once per change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import structlog

log = structlog.get_logger("connector.health")


class Health:
    """Reports of the parts that readiness depends on."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}
        self._checks: list[Callable[[], Iterable[str]]] = []
        self._describe: Callable[[], Mapping[str, object]] = dict

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

    def describe(self, streams: Callable[[], Mapping[str, object]]) -> None:
        """Ask *streams* whenever somebody wants to know how each of them is."""
        self._describe = streams

    def status(self) -> dict[str, object]:
        """Return what stands against readiness, and how each stream is."""
        troubles = self.troubles()
        return {"ready": not troubles, "troubles": troubles, "streams": self._describe()}

    def troubles(self) -> list[str]:
        """Return all that stands against readiness."""
        reported = [f"{part}: {trouble}" for part, trouble in self._troubles.items()]
        return [*reported, *(trouble for check in self._checks for trouble in check())]
