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
    |  |- RedisTls                   110  redis_tls
    |  |- RedisServerMissing         111  redis_server_missing
    |  `- LeaseLost                   44  lease_lost
    |- RpcError
    |  |- PortBusy                    50  port_busy
    |  |- TrainerUnreachable          51  trainer_unreachable
    |  |- PlaintextRefused            52  plaintext_refused
    |  |- WeightsMismatch             53  weights_mismatch
    |  |- WeightsUnavailable          54  weights_unavailable
    |  `- IdentityError
    |     |- IdentityMissing         104  identity_missing
    |     |- TokenRefused            105  token_refused
    |     |- AuthorityMismatch       106  authority_mismatch
    |     |- AccessDenied            107  access_denied
    |     |- CertificateRefused      108  certificate_refused
    |     `- IdentityInvalid         109  identity_invalid
    |- RunError
    |  |- RunDirBusy                  60  run_dir_busy
    |  |- RunDirMissing               61  run_dir_missing
    |  |- RunDirNotEmpty              62  run_dir_not_empty
    |  |- CheckpointInvalid           63  checkpoint_invalid
    |  |- LogCorrupt                  64  log_corrupt
    |  |- TrainerSuperseded           65  trainer_superseded
    |  |- NoSignal                    66  no_signal
    |  |- DiskFull                    67  disk_full
    |  |- InvariantBroken            100  invariant_broken
    |  |- QuarantineRefused          101  quarantine_refused
    |  |- ReplayDiffers               68  replay_differs
    |  `- RunStalled                 114  run_stalled
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

from tersely.errors.base import TerselyError, concrete_errors
from tersely.errors.identity import (
    AccessDenied,
    AuthorityMismatch,
    CertificateRefused,
    IdentityError,
    IdentityInvalid,
    IdentityMissing,
    TokenRefused,
)
from tersely.errors.inputs import (
    AblationIncomplete,
    ConfigError,
    ConfigFileMissing,
    ConfigSyntax,
    ConfigUnknownKey,
    ConfigValue,
    DataEmpty,
    DataError,
    DataMissing,
    DataRecord,
    DownloadFailed,
    EvaluationInvalid,
    EvaluationsDiffer,
    HubUnreachable,
    JudgeShifted,
    ModelError,
    ModelInvalid,
    ModelMissing,
    ModelTokenizerMissing,
    PlanDoesNotFit,
)
from tersely.errors.network import (
    JobError,
    JobFailed,
    LeaseLost,
    NoWorkers,
    OutputBusy,
    PlaintextRefused,
    PortBusy,
    QueueError,
    RedisAuth,
    RedisOutOfMemory,
    RedisServerMissing,
    RedisTls,
    RedisTooOld,
    RedisUnreachable,
    RpcError,
    TrainerUnreachable,
    WeightsMismatch,
    WeightsUnavailable,
)
from tersely.errors.running import (
    CheckpointInvalid,
    DiskFull,
    EngineFailed,
    InvariantBroken,
    JudgeBudget,
    JudgeCache,
    JudgeEndpoint,
    JudgeError,
    JudgeNotConfigured,
    LogCorrupt,
    NoSignal,
    PackageMissing,
    QuarantineRefused,
    RankLost,
    ReplayDiffers,
    RewardError,
    RewardFailed,
    RewardUnknown,
    RunDirBusy,
    RunDirMissing,
    RunDirNotEmpty,
    RunError,
    RunStalled,
    ServiceError,
    ServiceFailed,
    TrainerSuperseded,
    WeightsNotApplied,
)

__all__ = [
    "AblationIncomplete",
    "AccessDenied",
    "AuthorityMismatch",
    "CertificateRefused",
    "CheckpointInvalid",
    "ConfigError",
    "ConfigFileMissing",
    "ConfigSyntax",
    "ConfigUnknownKey",
    "ConfigValue",
    "DataEmpty",
    "DataError",
    "DataMissing",
    "DataRecord",
    "DiskFull",
    "DownloadFailed",
    "EngineFailed",
    "EvaluationInvalid",
    "EvaluationsDiffer",
    "HubUnreachable",
    "IdentityError",
    "IdentityInvalid",
    "IdentityMissing",
    "InvariantBroken",
    "JobError",
    "JobFailed",
    "JudgeBudget",
    "JudgeCache",
    "JudgeEndpoint",
    "JudgeError",
    "JudgeNotConfigured",
    "JudgeShifted",
    "LeaseLost",
    "LogCorrupt",
    "ModelError",
    "ModelInvalid",
    "ModelMissing",
    "ModelTokenizerMissing",
    "NoSignal",
    "NoWorkers",
    "OutputBusy",
    "PackageMissing",
    "PlaintextRefused",
    "PlanDoesNotFit",
    "PortBusy",
    "QuarantineRefused",
    "QueueError",
    "RankLost",
    "RedisAuth",
    "RedisOutOfMemory",
    "RedisServerMissing",
    "RedisTls",
    "RedisTooOld",
    "RedisUnreachable",
    "ReplayDiffers",
    "RewardError",
    "RewardFailed",
    "RewardUnknown",
    "RpcError",
    "RunDirBusy",
    "RunDirMissing",
    "RunDirNotEmpty",
    "RunError",
    "RunStalled",
    "ServiceError",
    "ServiceFailed",
    "TerselyError",
    "TokenRefused",
    "TrainerSuperseded",
    "TrainerUnreachable",
    "WeightsMismatch",
    "WeightsNotApplied",
    "WeightsUnavailable",
    "concrete_errors",
]
