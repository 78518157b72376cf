"""Runs and the services in them."""

from __future__ import annotations

from tersely.errors.base import TerselyError


class RunError(TerselyError):
    """A run directory and its trainer."""


class RunDirBusy(RunError):
    """Another trainer holds the lock of this run directory."""

    kind, exit_code = "run_dir_busy", 60


class RunDirMissing(RunError):
    """There is no run in that directory."""

    kind, exit_code = "run_dir_missing", 61


class RunDirNotEmpty(RunError):
    """A new run was asked for in a directory that already holds one."""

    kind, exit_code = "run_dir_not_empty", 62


class CheckpointInvalid(RunError):
    """A checkpoint is incomplete, has a wrong hash, or belongs to another recipe."""

    kind, exit_code = "checkpoint_invalid", 63


class LogCorrupt(RunError):
    """The write-ahead log is damaged before its last record."""

    kind, exit_code = "log_corrupt", 64


class TrainerSuperseded(RunError):
    """A newer trainer took over this run; this one must stop."""

    kind, exit_code = "trainer_superseded", 65


class NoSignal(RunError):
    """Step after step no group had two different rewards: nothing can be learned."""

    kind, exit_code = "no_signal", 66


class DiskFull(RunError):
    """The disk of the run directory has no room for the log, a checkpoint or another file of the run."""

    kind, exit_code = "disk_full", 67


class InvariantBroken(RunError):
    """What a run has written down can't be true."""

    kind, exit_code = "invariant_broken", 100


class QuarantineRefused(RunError):
    """A group of the quarantine can't be shown, tried again or dropped as asked."""

    kind, exit_code = "quarantine_refused", 101


class ReplayDiffers(RunError):
    """Training again from a run's log gave other weights than the run had."""

    kind, exit_code = "replay_differs", 68


class RunStalled(RunError):
    """A step was held up for longer than `watchdog.give_up_seconds`."""

    kind, exit_code = "run_stalled", 114


class ServiceError(TerselyError):
    """A service that can't start or keeps dying."""


class ServiceFailed(ServiceError):
    """A supervised service died more often than the restart limit allows."""

    kind, exit_code = "service_failed", 70


class PackageMissing(ServiceError):
    """A Python package that this role needs is not installed."""

    kind, exit_code = "package_missing", 71


class JudgeNotConfigured(ServiceError):
    """A judgement was asked for, but no judge endpoint is configured."""

    kind, exit_code = "judge_not_configured", 72


class EngineFailed(ServiceError):
    """A rollout engine could not load, generate or swap."""

    kind, exit_code = "engine_failed", 73


class RankLost(ServiceError):
    """Another process of a learner that runs on several is gone, or does not answer in time."""

    kind, exit_code = "rank_lost", 74


class WeightsNotApplied(ServiceError):
    """An engine was given weights and samples from others: its log-probs of the probe prompt are not the learner's."""

    kind, exit_code = "weights_not_applied", 76


class JudgeError(TerselyError):
    """A language model that judges, and what it is asked through."""


class JudgeEndpoint(JudgeError):
    """The judge's endpoint can't be reached, or refuses: a wrong key, an unknown model."""

    kind, exit_code = "judge_endpoint", 90


class JudgeBudget(JudgeError):
    """The judge's budget of tokens or money is used up; what was judged before is kept."""

    kind, exit_code = "judge_budget", 91


class JudgeCache(JudgeError):
    """The folder in which the judge keeps its answers can't be used."""

    kind, exit_code = "judge_cache", 92


class RewardError(TerselyError):
    """A reward plugin."""


class RewardUnknown(RewardError):
    """The recipe names a reward that no installed package provides."""

    kind, exit_code = "reward_unknown", 80


class RewardFailed(RewardError):
    """A reward could not be set up (a package or file it needs is missing)."""

    kind, exit_code = "reward_failed", 81
