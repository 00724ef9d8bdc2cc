"""Make-before-break as a state machine. Pure; all of its transitions stand in `step`.

Two rules hold in every phase:

1. The active connection is closed only after the candidate has proven to live (`PROMOTE` follows
   `CANDIDATE_LIVE`), or when it is gone already, or when nothing is asked for any more. Only `DUE_ALONE`
   breaks before it makes, for upstreams that allow one connection.
2. A reader that is between connections is left alone: its next attempt carries the newest predicates,
   so a change never bypasses a back-off delay.
"""

from __future__ import annotations

from enum import Enum, auto

from connector.errors import IllegalTransition


class Phase(Enum):
    """What a stream is doing about its connections."""

    IDLE = auto()  # nothing is asked for
    CONNECTING = auto()  # one reader, between connections
    STEADY = auto()  # one reader, connected
    OVERLAP = auto()  # the active one connected, a candidate between connections
    PROVING = auto()  # the active one connected, the candidate too, but silent so far
    DRAINING = auto()  # the candidate lives; the active one is read to its end
    AMENDING = auto()  # the active one connected; the upstream's rules are being changed
    CLOSED = auto()  # final


class Signal(Enum):
    """What may happen."""

    DUE = auto()  # changed predicates may be asked for now
    DUE_ALONE = auto()  # the same, where one connection is all there may be
    DUE_RULES = auto()  # the same, where the upstream keeps them as rules
    CANCELLED = auto()  # the changes came to nothing: what is in force is what is wanted
    EMPTIED = auto()  # nothing is asked for any more
    ACTIVE_CONNECTED = auto()
    ACTIVE_LOST = auto()
    CANDIDATE_CONNECTED = auto()
    CANDIDATE_LIVE = auto()
    CANDIDATE_LOST = auto()
    DRAINED = auto()  # the active connection has nothing more to give
    AMENDED = auto()  # the upstream's rules are changed
    STOP = auto()


class Action(Enum):
    """What to do about it, in the order given."""

    START_ACTIVE = auto()
    START_CANDIDATE = auto()
    STOP_CANDIDATE = auto()
    RELEASE = auto()  # deliver what the candidate sent while the active one was drained
    PROMOTE = auto()  # close the active one, the candidate takes its place
    REPLACE = auto()  # close the active one; once its socket is closed, another starts
    START_AMENDING = auto()
    STOP_AMENDING = auto()
    STOP_ALL = auto()


MAY_RESTART = frozenset({Phase.IDLE, Phase.STEADY, Phase.PROVING})
"""Where `DUE` is legal; elsewhere a change waits for the next attempt or the end of the overlap."""


def step(phase: Phase, signal: Signal) -> tuple[Phase, tuple[Action, ...]]:
    """Return the next phase and the actions to run, in order.

    Raises:
        IllegalTransition: the phase does not allow the signal.
    """
    match phase, signal:
        case Phase.CLOSED, Signal.STOP:
            return Phase.CLOSED, ()
        case Phase.DRAINING, Signal.STOP:
            return Phase.CLOSED, (Action.RELEASE, Action.STOP_ALL)
        case _, Signal.STOP:
            return Phase.CLOSED, (Action.STOP_ALL,)
        case Phase.IDLE, Signal.EMPTIED:
            return Phase.IDLE, ()
        case Phase.DRAINING, Signal.EMPTIED:
            return Phase.IDLE, (Action.RELEASE, Action.STOP_ALL)
        case _, Signal.EMPTIED if phase is not Phase.CLOSED:
            return Phase.IDLE, (Action.STOP_ALL,)
        case Phase.IDLE, Signal.DUE:
            return Phase.CONNECTING, (Action.START_ACTIVE,)
        case Phase.CONNECTING, Signal.ACTIVE_CONNECTED:
            return Phase.STEADY, ()
        case ((Phase.CONNECTING | Phase.STEADY), Signal.ACTIVE_LOST):
            return Phase.CONNECTING, ()
        case Phase.STEADY, Signal.DUE:
            return Phase.OVERLAP, (Action.START_CANDIDATE,)
        case Phase.STEADY, Signal.DUE_ALONE:
            return Phase.CONNECTING, (Action.REPLACE,)
        case Phase.STEADY, Signal.DUE_RULES:
            return Phase.AMENDING, (Action.START_AMENDING,)
        case Phase.AMENDING, Signal.AMENDED:
            return Phase.STEADY, (Action.STOP_AMENDING,)
        case Phase.AMENDING, Signal.ACTIVE_LOST:  # its next attempt brings the rules up to date
            return Phase.CONNECTING, (Action.STOP_AMENDING,)
        case Phase.PROVING, Signal.DUE:
            return Phase.OVERLAP, (Action.STOP_CANDIDATE, Action.START_CANDIDATE)
        case ((Phase.OVERLAP | Phase.PROVING), Signal.CANCELLED):
            return Phase.STEADY, (Action.STOP_CANDIDATE,)
        case ((Phase.IDLE | Phase.CONNECTING | Phase.STEADY | Phase.DRAINING), Signal.CANCELLED):
            return phase, ()
        case Phase.OVERLAP, Signal.CANDIDATE_CONNECTED:
            return Phase.PROVING, ()
        case ((Phase.OVERLAP | Phase.PROVING), Signal.CANDIDATE_LOST):
            return Phase.OVERLAP, ()
        case Phase.OVERLAP, Signal.ACTIVE_LOST:
            return Phase.CONNECTING, (Action.PROMOTE,)
        case Phase.PROVING, Signal.ACTIVE_LOST:
            return Phase.STEADY, (Action.PROMOTE,)
        case Phase.PROVING, Signal.CANDIDATE_LIVE:
            return Phase.DRAINING, ()
        case Phase.DRAINING, (Signal.DRAINED | Signal.ACTIVE_LOST):
            return Phase.STEADY, (Action.RELEASE, Action.PROMOTE)
        case Phase.DRAINING, Signal.CANDIDATE_LOST:
            return Phase.OVERLAP, (Action.RELEASE,)
        case _:
            raise IllegalTransition(f"{signal.name} in phase {phase.name}")
