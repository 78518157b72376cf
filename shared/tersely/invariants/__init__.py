"""What must be true of every run, whatever was killed in it, checked on what the run has written down.

`tersely invariants RUN_DIR` prints each invariant with how much of it was checked, and each breach with its place. What
a run has not recorded is said to be that, and never counts as right.
"""

from tersely.invariants.check import Report, check_run
from tersely.invariants.finding import Breach, Finding

__all__ = ["Breach", "Finding", "Report", "check_run"]
