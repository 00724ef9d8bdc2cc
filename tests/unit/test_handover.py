"""The whole table of transitions, and what no walk through it can bring about."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.errors import IllegalTransition
from connector.stream.handover import MAY_RESTART, Action, Phase, Signal, step

IDLE, CONNECTING, STEADY = Phase.IDLE, Phase.CONNECTING, Phase.STEADY
OVERLAP, PROVING, DRAINING = Phase.OVERLAP, Phase.PROVING, Phase.DRAINING
AMENDING, CLOSED = Phase.AMENDING, Phase.CLOSED

TABLE = {
    (IDLE, Signal.DUE): (CONNECTING, [Action.START_ACTIVE]),
    (IDLE, Signal.CANCELLED): (IDLE, []),
    (IDLE, Signal.EMPTIED): (IDLE, []),
    (IDLE, Signal.STOP): (CLOSED, [Action.STOP_ALL]),
    #
    (CONNECTING, Signal.CANCELLED): (CONNECTING, []),
    (CONNECTING, Signal.EMPTIED): (IDLE, [Action.STOP_ALL]),
    (CONNECTING, Signal.ACTIVE_CONNECTED): (STEADY, []),
    (CONNECTING, Signal.ACTIVE_LOST): (CONNECTING, []),
    (CONNECTING, Signal.STOP): (CLOSED, [Action.STOP_ALL]),
    #
    (STEADY, Signal.DUE): (OVERLAP, [Action.START_CANDIDATE]),
    (STEADY, Signal.DUE_ALONE): (CONNECTING, [Action.REPLACE]),
    (STEADY, Signal.CANCELLED): (STEADY, []),
    (STEADY, Signal.EMPTIED): (IDLE, [Action.STOP_ALL]),
    (STEADY, Signal.ACTIVE_LOST): (CONNECTING, []),
    (STEADY, Signal.STOP): (CLOSED, [Action.STOP_ALL]),
    #
    (OVERLAP, Signal.CANCELLED): (STEADY, [Action.STOP_CANDIDATE]),
    (OVERLAP, Signal.EMPTIED): (IDLE, [Action.STOP_ALL]),
    (OVERLAP, Signal.ACTIVE_LOST): (CONNECTING, [Action.PROMOTE]),
    (OVERLAP, Signal.CANDIDATE_CONNECTED): (PROVING, []),
    (OVERLAP, Signal.CANDIDATE_LOST): (OVERLAP, []),
    (OVERLAP, Signal.STOP): (CLOSED, [Action.STOP_ALL]),
    #
    (PROVING, Signal.DUE): (OVERLAP, [Action.STOP_CANDIDATE, Action.START_CANDIDATE]),
    (PROVING, Signal.CANCELLED): (STEADY, [Action.STOP_CANDIDATE]),
    (PROVING, Signal.EMPTIED): (IDLE, [Action.STOP_ALL]),
    (PROVING, Signal.ACTIVE_LOST): (STEADY, [Action.PROMOTE]),
    (PROVING, Signal.CANDIDATE_LIVE): (DRAINING, []),
    (PROVING, Signal.CANDIDATE_LOST): (OVERLAP, []),
    (PROVING, Signal.STOP): (CLOSED, [Action.STOP_ALL]),
    #
    (DRAINING, Signal.CANCELLED): (DRAINING, []),
    (DRAINING, Signal.EMPTIED): (IDLE, [Action.RELEASE, Action.STOP_ALL]),
    (DRAINING, Signal.ACTIVE_LOST): (STEADY, [Action.RELEASE, Action.PROMOTE]),
    (DRAINING, Signal.CANDIDATE_LOST): (OVERLAP, [Action.RELEASE]),
    (DRAINING, Signal.DRAINED): (STEADY, [Action.RELEASE, Action.PROMOTE]),
    (DRAINING, Signal.STOP): (CLOSED, [Action.RELEASE, Action.STOP_ALL]),
    #
    (STEADY, Signal.DUE_RULES): (AMENDING, [Action.START_AMENDING]),
    (AMENDING, Signal.AMENDED): (STEADY, [Action.STOP_AMENDING]),
    (AMENDING, Signal.ACTIVE_LOST): (CONNECTING, [Action.STOP_AMENDING]),
    (AMENDING, Signal.EMPTIED): (IDLE, [Action.STOP_ALL]),
    (AMENDING, Signal.STOP): (CLOSED, [Action.STOP_ALL]),
    #
    (CLOSED, Signal.STOP): (CLOSED, []),
}

LEGAL = {phase: [signal for signal in Signal if (phase, signal) in TABLE] for phase in Phase}


@pytest.mark.parametrize(("phase", "signal"), list(product(Phase, Signal)), ids=lambda value: value.name)
def test_every_transition_is_that_of_the_table(phase, signal):
    if (phase, signal) in TABLE:
        after, actions = TABLE[phase, signal]
        assert step(phase, signal) == (after, tuple(actions))
    else:
        with pytest.raises(IllegalTransition, match=f"{signal.name} in phase {phase.name}"):
            step(phase, signal)


def test_a_restart_is_asked_for_only_where_it_is_legal():
    assert {phase for phase in Phase if (phase, Signal.DUE) in TABLE} == MAY_RESTART


@dataclass
class Readers:
    """What a shell that runs the actions holds; each reader is a number."""

    phase: Phase = IDLE
    active: int | None = None
    candidate: int | None = None
    amending: int | None = None
    started: count[int] = field(default_factory=lambda: count(1))

    @property
    def alive(self) -> list[int]:
        return [reader for reader in (self.active, self.candidate, self.amending) if reader is not None]

    def signal(self, signal: Signal) -> tuple[Action, ...]:
        self.phase, actions = step(self.phase, signal)
        for action in actions:
            self.act(action)
        return actions

    def act(self, action: Action) -> None:
        match action:
            case Action.START_ACTIVE:
                assert self.alive == []
                self.active = next(self.started)
            case Action.START_CANDIDATE:
                assert self.active is not None
                assert self.candidate is None, "the one before was not stopped"
                self.candidate = next(self.started)
            case Action.STOP_CANDIDATE:
                assert self.candidate is not None
                self.candidate = None
            case Action.PROMOTE:
                assert self.candidate is not None
                self.active, self.candidate = self.candidate, None
            case Action.REPLACE:
                assert self.candidate is None
                self.active = next(self.started)
            case Action.RELEASE:
                assert self.candidate is not None
            case Action.START_AMENDING:
                assert self.candidate is None
                self.amending = next(self.started)
            case Action.STOP_AMENDING:
                assert self.amending is not None
                self.amending = None
            case Action.STOP_ALL:
                self.active = self.candidate = self.amending = None
        assert len(self.alive) <= 2


ENDS_THE_ACTIVE = {
    IDLE: set(),
    CONNECTING: {Signal.STOP, Signal.EMPTIED},
    STEADY: {Signal.STOP, Signal.EMPTIED, Signal.DUE_ALONE},
    OVERLAP: {Signal.STOP, Signal.EMPTIED, Signal.ACTIVE_LOST},
    PROVING: {Signal.STOP, Signal.EMPTIED, Signal.ACTIVE_LOST},
    DRAINING: {Signal.STOP, Signal.EMPTIED, Signal.ACTIVE_LOST, Signal.DRAINED},
    AMENDING: {Signal.STOP, Signal.EMPTIED},
    CLOSED: set(),
}


@given(st.data())
def test_no_walk_breaks_a_connection_before_its_successor_is_made(data):
    readers = Readers()
    for _ in range(data.draw(st.integers(0, 40))):
        before, active = readers.phase, readers.active
        # STOP is legal everywhere and ends the walk, so it is taken last.
        signals = [signal for signal in LEGAL[before] if signal is not Signal.STOP]
        signal = data.draw(st.sampled_from(signals))
        actions = readers.signal(signal)
        if active is not None and readers.active != active:
            assert signal in ENDS_THE_ACTIVE[before]
        if Action.PROMOTE in actions:
            assert before in {OVERLAP, PROVING, DRAINING}
        if Action.RELEASE in actions:
            assert before is DRAINING
            assert actions[0] is Action.RELEASE, "what is held goes out while the candidate is known"
        if before is DRAINING and readers.phase is not DRAINING:
            assert Action.RELEASE in actions
        expected = {IDLE: 0, CONNECTING: 1, STEADY: 1, OVERLAP: 2, PROVING: 2, DRAINING: 2, AMENDING: 2}
        assert len(readers.alive) == expected[readers.phase]
    readers.signal(Signal.STOP)
    assert readers.phase is CLOSED
    assert readers.alive == []


def test_closed_is_final():
    assert LEGAL[CLOSED] == [Signal.STOP]
    assert step(CLOSED, Signal.STOP) == (CLOSED, ())


def test_every_phase_can_be_reached():
    reached, fresh = {IDLE}, {IDLE}
    while fresh:
        fresh = {step(phase, signal)[0] for phase in fresh for signal in LEGAL[phase]} - reached
        reached |= fresh
    assert reached == set(Phase)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not CLOSED])
def test_no_phase_but_the_last_is_a_dead_end(phase):
    later = {step(phase, signal)[0] for signal in LEGAL[phase] if signal is not Signal.STOP}
    assert later - {phase}
