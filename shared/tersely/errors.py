"""Every failure that a user can meet, as one tree with stable codes.

    TerselyError                      exit code, kind
    |- ConfigError
    |  |- ConfigFileMissing           10  config_file_missing
    |  |- ConfigSyntax                11  config_syntax
    |  |- ConfigUnknownKey            12  config_unknown_key
    |  |- ConfigValue                 13  config_value
    |  `- PlanDoesNotFit              14  plan_does_not_fit
    |- DataError
    |  |- DataMissing                 20  data_missing
    |  |- DataEmpty                   21  data_empty
    |  |- DataRecord                  22  data_record
    |  |- DownloadFailed              23  download_failed
    |  |- EvaluationInvalid           25  evaluation_invalid
    |  |- EvaluationsDiffer           26  evaluations_differ
    |  |- AblationIncomplete          27  ablation_incomplete
    |  `- JudgeShifted                28  judge_shifted
    |- ModelError
    |  |- ModelMissing                30  model_missing
    |  |- ModelTokenizerMissing       31  model_tokenizer_missing
    |  |- ModelInvalid                32  model_invalid
    |  `- HubUnreachable              33  hub_unreachable
    |- QueueError
    |  |- RedisUnreachable            40  redis_unreachable
    |  |- RedisAuth                   41  redis_auth
    |  |- RedisTooOld                 42  redis_too_old
    |  |- RedisOutOfMemory            43  redis_out_of_memory
    |  `- LeaseLost                   44  lease_lost
    |- RpcError
    |  |- PortBusy                    50  port_busy
    |  |- TrainerUnreachable          51  trainer_unreachable
    |  |- PlaintextRefused            52  plaintext_refused
    |  |- WeightsMismatch             53  weights_mismatch
    |  `- WeightsUnavailable          54  weights_unavailable
    |- RunError
    |  |- RunDirBusy                  60  run_dir_busy
    |  |- RunDirMissing               61  run_dir_missing
    |  |- RunDirNotEmpty              62  run_dir_not_empty
    |  |- CheckpointInvalid           63  checkpoint_invalid
    |  |- LogCorrupt                  64  log_corrupt
    |  |- TrainerSuperseded           65  trainer_superseded
    |  |- NoSignal                    66  no_signal
    |  |- DiskFull                    67  disk_full
    |  `- ReplayDiffers               68  replay_differs
    |- ServiceError
    |  |- ServiceFailed               70  service_failed
    |  |- PackageMissing              71  package_missing
    |  |- JudgeNotConfigured          72  judge_not_configured
    |  |- EngineFailed                73  engine_failed
    |  |- RankLost                    74  rank_lost
    |  `- WeightsNotApplied           76  weights_not_applied
    |- JudgeError
    |  |- JudgeEndpoint               90  judge_endpoint
    |  |- JudgeBudget                 91  judge_budget
    |  `- JudgeCache                  92  judge_cache
    |- JobError
    |  |- NoWorkers                   94  no_workers
    |  |- JobFailed                   95  job_failed
    |  `- OutputBusy                  96  output_busy
    `- RewardError
       |- RewardUnknown               80  reward_unknown
       `- RewardFailed                81  reward_failed

A kind (the snake-case word) and its exit code never change once released. Each has a page in docs/errors/; a test
holds this tree, the classes and the pages together.
"""

from __future__ import annotations

from collections.abc import Iterator


class TerselyError(Exception):
    """Base of all: what happened (`message`), and what to do about it (`way_out`).

    Args:
        message: What happened and where, one or two sentences, safe to show.
        way_out: The next thing the user should do, in the imperative.
    """

    kind: str = "tersely"
    exit_code: int = 1

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.message} {self.way_out}".strip()

    def render(self) -> str:
        """Plain text for a terminal: kind, message, way out and page, without a traceback."""
        lines = [f"error[{self.kind}]: {self.message}"]
        if self.way_out:
            lines.append(f"  what to do: {self.way_out}")
        lines.append(f"  more: docs/errors/{self.kind}.md (exit code {self.exit_code})")
        return "\n".join(lines)


class ConfigError(TerselyError):
    """A recipe or setting that can't be used."""


class ConfigFileMissing(ConfigError):
    """The recipe file can't be read."""

    kind, exit_code = "config_file_missing", 10


class ConfigSyntax(ConfigError):
    """The recipe is not TOML, or a `--set` is not `key=value`."""

    kind, exit_code = "config_syntax", 11


class ConfigUnknownKey(ConfigError):
    """A key that tersely does not know; the nearest known name is in the way out."""

    kind, exit_code = "config_unknown_key", 12


class ConfigValue(ConfigError):
    """A known key with a value out of type or range, or values that contradict each other."""

    kind, exit_code = "config_value", 13


class PlanDoesNotFit(ConfigError):
    """The run needs more memory than the machine has; the settings that would fit are in the way out."""

    kind, exit_code = "plan_does_not_fit", 14


class DataError(TerselyError):
    """Training or evaluation data that can't be used."""


class DataMissing(DataError):
    """The data file, folder or split does not exist."""

    kind, exit_code = "data_missing", 20


class DataEmpty(DataError):
    """The data set holds no record."""

    kind, exit_code = "data_empty", 21


class DataRecord(DataError):
    """A record lacks a field or is not JSON; the message names file and line."""

    kind, exit_code = "data_record", 22


class DownloadFailed(DataError):
    """A package with data or a model could not be fetched, or its hash is wrong."""

    kind, exit_code = "download_failed", 23


class EvaluationInvalid(DataError):
    """A file that should hold an evaluation can't be read as one."""

    kind, exit_code = "evaluation_invalid", 25


class EvaluationsDiffer(DataError):
    """Evaluations that were asked for different things can't be compared."""

    kind, exit_code = "evaluations_differ", 26


class AblationIncomplete(DataError):
    """Some runs of an ablation failed; the report is about the others."""

    kind, exit_code = "ablation_incomplete", 27


class JudgeShifted(DataError):
    """A judge scores the frozen anchors otherwise than before: its new scores can't be compared with its old ones."""

    kind, exit_code = "judge_shifted", 28


class ModelError(TerselyError):
    """A policy model that can't be used."""


class ModelMissing(ModelError):
    """No model folder at the path that was given."""

    kind, exit_code = "model_missing", 30


class ModelTokenizerMissing(ModelError):
    """The model folder has no tokenizer, or one without a chat template."""

    kind, exit_code = "model_tokenizer_missing", 31


class ModelInvalid(ModelError):
    """The folder's config or weights can't be loaded."""

    kind, exit_code = "model_invalid", 32


class HubUnreachable(ModelError):
    """The model or data set is neither cached nor can the hub be reached."""

    kind, exit_code = "hub_unreachable", 33


class QueueError(TerselyError):
    """The Redis or Valkey server, or an entry in its streams."""


class RedisUnreachable(QueueError):
    """Nothing answers at the Redis URL."""

    kind, exit_code = "redis_unreachable", 40


class RedisAuth(QueueError):
    """The server refused the user or the password, or the user lacks a permission."""

    kind, exit_code = "redis_auth", 41


class RedisTooOld(QueueError):
    """The server is older than Redis 7.0 / Valkey 7.2."""

    kind, exit_code = "redis_too_old", 42


class RedisOutOfMemory(QueueError):
    """The server is at `maxmemory` with `noeviction` and refuses writes."""

    kind, exit_code = "redis_out_of_memory", 43


class LeaseLost(QueueError):
    """The entry is no longer leased to this consumer: its work must not be pushed."""

    kind, exit_code = "lease_lost", 44


class RpcError(TerselyError):
    """gRPC between the nodes."""


class PortBusy(RpcError):
    """The address to listen on is taken."""

    kind, exit_code = "port_busy", 50


class TrainerUnreachable(RpcError):
    """Nothing answers at the trainer's address within the deadline."""

    kind, exit_code = "trainer_unreachable", 51


class PlaintextRefused(RpcError):
    """Listening beyond loopback without TLS was not asked for by name."""

    kind, exit_code = "plaintext_refused", 52


class WeightsMismatch(RpcError):
    """Fetched weights do not have the hash that their manifest states."""

    kind, exit_code = "weights_mismatch", 53


class WeightsUnavailable(RpcError):
    """The trainer no longer holds the version that was asked for."""

    kind, exit_code = "weights_unavailable", 54


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


class ReplayDiffers(RunError):
    """Training again from a run's log gave other weights than the run had."""

    kind, exit_code = "replay_differs", 68


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


class JobError(TerselyError):
    """Files handed to the job queues: `tersely score`, `tersely judge-file`."""


class NoWorkers(JobError):
    """Nobody works on the job queue."""

    kind, exit_code = "no_workers", 94


class JobFailed(JobError):
    """A batch failed, or took its workers down, as often as it is tried."""

    kind, exit_code = "job_failed", 95


class OutputBusy(JobError):
    """Another process is writing the same output file."""

    kind, exit_code = "output_busy", 96


class RewardError(TerselyError):
    """A reward plugin."""


class RewardUnknown(RewardError):
    """The recipe names a reward that no installed package provides."""

    kind, exit_code = "reward_unknown", 80


class RewardFailed(RewardError):
    """A reward could not be set up (a package or file it needs is missing)."""

    kind, exit_code = "reward_failed", 81


def concrete_errors() -> Iterator[type[TerselyError]]:
    """All classes of the tree that have a code of their own, in the order of their codes."""

    def walk(cls: type[TerselyError]) -> Iterator[type[TerselyError]]:
        for sub in cls.__subclasses__():
            if "kind" in sub.__dict__:
                yield sub
            yield from walk(sub)

    return iter(sorted(walk(TerselyError), key=lambda cls: cls.exit_code))
