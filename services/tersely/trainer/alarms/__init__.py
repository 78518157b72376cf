"""Alarms: what the figures of the last steps say when a run goes wrong, why, and which setting to change.

Everything is computed from the figures of `step_finished` events, so that a trainer that takes a run up again comes to
the same state from the event log. No clock, no chance.
"""

from tersely.trainer.alarms.alarm import Alarm
from tersely.trainer.alarms.watch import ALARMS, AlarmWatch

__all__ = ["ALARMS", "Alarm", "AlarmWatch"]
