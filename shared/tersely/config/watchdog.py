"""`[watchdog]`: when a step that is held up is called so, and when the run gives up on it."""

from __future__ import annotations

from pydantic import Field

from tersely.config.section import Section


class WatchdogSection(Section):
    """From when on a step counts as stalled, by the run's own history."""

    factor: float = Field(
        3.0, ge=1.5, description="A phase of a step is late when it takes so many times its longest so far."
    )
    least_seconds: float = Field(10.0, gt=0, description="No phase is late before it has taken this long.")
    first_seconds: float = Field(
        300.0,
        gt=0,
        description="Time for a phase of which there is no history; what is plainly broken is said earlier.",
    )
    give_up_seconds: float | None = Field(
        None, gt=0, description="A stall of this length ends the run with exit code 114; none: it waits for ever."
    )
