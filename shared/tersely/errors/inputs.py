"""What a user hands in: recipes, data, models, measurements."""

from __future__ import annotations

from tersely.errors.base import TerselyError


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
