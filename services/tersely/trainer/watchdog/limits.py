"""From when on a phase is late, by the run's own history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tersely.config.watchdog import WatchdogSection
from tersely.trainer.watchdog.pace import COLLECT, WAITS, Past
from tersely.trainer.watchdog.snapshot import Snapshot

_LEAST_KNOWN = 2
_ROBUST_FROM = 5


@dataclass(frozen=True, slots=True)
class Late:
    """A phase that is late.

    Attributes:
        seconds: What is too long.
        limit_seconds: How long it may be.
        quiet: Whether it is the time since something came back; else the whole of the phase.
    """

    seconds: float
    limit_seconds: float
    quiet: bool = False

    @property
    def still_seconds(self) -> float:
        """From when on a node counts as standing still: it began a little after what is awaited, and told it later."""
        return 0.6 * min(self.seconds, self.limit_seconds)


def lateness(history: Mapping[str, Past], snapshot: Snapshot, now: float, settings: WatchdogSection) -> Late | None:
    """Whether the phase in hand is late.

    A phase in which groups come back is late when nothing has come back for longer than ever, times the factor, or when
    it takes longer than ever, times the factor.

    Args:
        history: Of the phases that ended.
        snapshot: The moment.
        now: By the awake clock.
        settings: Factor and floors.
    """
    phase = snapshot.phase
    if phase is None:
        return None
    past = history.get(phase.name, Past())
    # Held-out prompts go round beside the training groups, and each may stand before one of them.
    factor = settings.factor * (2 if phase.name == COLLECT and snapshot.evaluating else 1)
    limit, taken = _limit(past.durations, factor, settings), now - phase.began
    if phase.name in WAITS:
        gap_limit, quiet = _limit(past.gaps, factor, settings), now - phase.progressed
        if quiet > gap_limit:
            return Late(quiet, gap_limit, quiet=True)
        if phase.longest_gap > gap_limit:
            taken -= phase.longest_gap  # a stall that is over; the rest has to be slow by itself to be called so
        # Gaps are known of this trainer's own steps alone, and to its first ones workers have to come.
        if len(past.gaps) < _LEAST_KNOWN:
            limit = max(limit, settings.first_seconds)
    return Late(taken, limit) if taken > limit else None


def _limit(values: Sequence[float], factor: float, settings: WatchdogSection) -> float:
    if len(values) < _LEAST_KNOWN:
        return settings.first_seconds
    ordered = sorted(values)
    # One outlier, such as the first step after workers had to join again, is no rule.
    longest = ordered[-2] if len(ordered) >= _ROBUST_FROM else ordered[-1]
    return max(settings.least_seconds, factor * longest)
