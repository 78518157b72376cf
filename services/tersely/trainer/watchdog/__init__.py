"""Says what holds a step up that takes longer than the run's own history says it should.

pace.py is told by the loop what it is at, and keeps how long that took; observer.py puts everything that can be known
into a `Snapshot`; `diagnose` (a pure function of history, snapshot and time) names the part that holds the step, and
why; watch.py says so in the events and the status, and gives up where it is told to; guard.py is its thread.
"""
