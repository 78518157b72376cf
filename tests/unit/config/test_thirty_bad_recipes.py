"""Recipes that can't work: each is refused with its own code, and the message names the key and the fix.

`check` cases are refused by `tersely config check`, from the recipe alone; `plan` cases by `tersely plan`, which also
reads the model's config and the data. Both go through the command line's own commands.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tersely.cli.main import app
from tersely.errors import TerselyError
from tersely.models.tiny import make_tiny_model, tiny_text

TARGETS = 'targets = ["q_proj", "v_projj"]'


@dataclass(frozen=True)
class Bad:
    """A recipe, the kind and code of its error, words of the message, words of the way out."""

    text: str
    kind: str
    code: int
    names: str
    fix: str
    overrides: tuple[str, ...] = ()


CHECK = {
    "not TOML": Bad("[run\nsteps = 3\n", "config_syntax", 11, "line 1", "Mend the line"),
    "unknown key": Bad("[run]\nstep = 3\n", "config_unknown_key", 12, "run.step", "run.steps"),
    "key in the wrong table": Bad(
        "[run]\nlearning_rate = 1e-6\n", "config_unknown_key", 12, "run.learning_rate", "learner.learning_rate"
    ),
    "unknown table": Bad("[lenght]\ntarget_tokens = 3\n", "config_unknown_key", 12, "lenght", "length"),
    "unknown key of a stage": Bad(
        '[[stages]]\nname = "a"\nstepz = 100\n[stages.rewards.length]\n', "config_unknown_key", 12, "stepz", "steps"
    ),
    "unknown key of the adapters": Bad(
        "[learner.lora]\nranks = 8\n", "config_unknown_key", 12, "learner.lora.ranks", "rank"
    ),
    "unknown option of a reward": Bad(
        "[rewards.length]\nscal = 2\n", "config_unknown_key", 12, "rewards.length.scal", "scale"
    ),
    "unknown reward": Bad("[rewards.lenght]\n", "reward_unknown", 80, "rewards.lenght", "length"),
    "unknown engine": Bad('[rollout]\nengine = "torhc"\n', "config_value", 13, "rollout.engine", "torch"),
    "text for a number": Bad('[learner]\nthreads = "two"\n', "config_value", 13, "learner.threads", "a whole number"),
    "number for a switch": Bad("[learner]\nrecompute = 7\n", "config_value", 13, "learner.recompute", "true or false"),
    "learning rate without end": Bad(
        "[learner]\nlearning_rate = inf\n", "config_value", 13, "learner.learning_rate", "a large one"
    ),
    "gradients never cut": Bad(
        "[learner]\nmax_grad_norm = inf\n", "config_value", 13, "learner.max_grad_norm", "a large one"
    ),
    "weight that is no number": Bad(
        "[rewards.length]\nweight = nan\n", "config_value", 13, "rewards.length.weight", "a large one"
    ),
    "stage's weight that is no number": Bad(
        '[[stages]]\nname = "a"\nsteps = 100\n[stages.rewards.length]\nweight = -inf\n',
        "config_value",
        13,
        "stages.0.rewards.length.weight",
        "a large one",
    ),
    "reward's option without end": Bad(
        "[rewards.length]\nscale = inf\n", "config_value", 13, "rewards.length: scale", "a large one"
    ),
    "warm-up longer than the run": Bad(
        "[run]\nsteps = 3\n[learner]\nwarmup_steps = 4\n",
        "config_value",
        13,
        "learner.warmup_steps",
        "learner.warmup_steps to 3 or less",
    ),
    "group of one": Bad("[run]\ngroup_size = 1\n", "config_value", 13, "run.group_size", "2 or more"),
    "temperature 0": Bad("[sampling]\ntemperature = 0\n", "config_value", 13, "sampling.temperature", "more than 0"),
    "negative refill": Bad("[run]\nmax_refill = -1\n", "config_value", 13, "run.max_refill", "0 or more"),
    "no steps": Bad("[run]\nsteps = 0\n", "config_value", 13, "run.steps", "1 or more"),
    "unknown loss": Bad('[learner]\nloss = "ppo"\n', "config_value", 13, "learner.loss", "'dr_grpo'"),
    "unknown device": Bad('[learner]\ndevice = "gpu"\n', "config_value", 13, "learner.device", "'cuda'"),
    "unknown ablation": Bad('[learner]\nablate = ["bf16"]\n', "config_value", 13, "learner.ablate", "'bf16_masters'"),
    "correction cap of 1": Bad(
        "[learner]\ncorrection_cap = 1\n", "config_value", 13, "learner.correction_cap", "more than 1"
    ),
    "negative KL": Bad("[learner]\nkl_coefficient = -0.1\n", "config_value", 13, "learner.kl_coefficient", "0 or more"),
    "adapters on nothing": Bad(
        "[learner.lora]\ntargets = []\n", "config_value", 13, "learner.lora.targets", "at least 1"
    ),
    "limit below the least": Bad(
        "[length]\ntarget_tokens = 64\nmax_completion_tokens = 80\n",
        "config_value",
        13,
        "length.max_completion_tokens",
        "at least 128",
    ),
    "range reversed": Bad(
        "[length]\ntarget_range = [64, 32]\n", "config_value", 13, "length.target_range", "[least, most]"
    ),
    "prompt without its document": Bad(
        '[data]\nprompt = "Sum up."\n', "config_value", 13, "data.prompt", "{target_tokens}"
    ),
    "held out from itself": Bad(
        '[data]\neval_split = "train"\n', "config_value", 13, "data.eval_split", "evaluation.prompts = 0"
    ),
    "no reward counts": Bad("[rewards.length]\nweight = 0.0\n", "config_value", 13, "rewards", "a weight other than 0"),
    "stages too short": Bad(
        '[[stages]]\nname = "a"\nsteps = 40\n[stages.rewards.length]\n',
        "config_value",
        13,
        "run.steps",
        "run.steps = 40",
    ),
    "stage with an unlisted reward": Bad(
        '[[stages]]\nname = "a"\nsteps = 100\n[stages.rewards.rouge_l]\n',
        "config_value",
        13,
        "stages.a",
        "add [rewards.rouge_l]",
    ),
    "two stages of one name": Bad(
        '[[stages]]\nname = "a"\nsteps = 50\n[stages.rewards.length]\n' * 2, "config_value", 13, "stages", "name"
    ),
    "best by an unknown figure": Bad(
        '[evaluation]\nbest_by = "greedy.rouge"\n', "config_value", 13, "evaluation.best_by", "greedy.within_5"
    ),
    "evaluation of nothing": Bad(
        "[evaluation]\nevery = 10\nprompts = 0\n", "config_value", 13, "evaluation.every", "set evaluation.prompts"
    ),
    "correction of what is ignored": Bad(
        '[learner]\ncorrection = "tis"\nablate = ["recomputed_logprobs"]\n',
        "config_value",
        13,
        "learner.correction",
        'learner.correction = "none"',
    ),
    "revision of a built-in model": Bad(
        '[model]\nname = "tiny"\nrevision = "main"\n', "config_value", 13, "model.revision", "remove model.revision"
    ),
    "queue by http": Bad('[queue]\nurl = "http://host:6379"\n', "config_value", 13, "queue.url", "redis://HOST:6379"),
    "open to the network": Bad(
        '[rpc]\nhost = "0.0.0.0"\n', "plaintext_refused", 52, "rpc.host", "rpc.insecure_lan = true"
    ),
    "override without a value": Bad("", "config_syntax", 11, "run.steps", "--set run.steps=10", ("run.steps",)),
}

PLAN = {
    "model that is not there": Bad('[model]\nname = "./nothing"\n', "model_missing", 30, "nothing", "model.name"),
    "data that are not there": Bad(
        '[data]\nsource = "./nothing.jsonl"\n', "data_missing", 20, "nothing.jsonl", "data.source"
    ),
    "target longer than the context": Bad(
        "[length]\ntarget_tokens = 3000\n", "config_value", 13, "length.target_tokens", "at most 1024 tokens"
    ),
    "documents longer than the context": Bad(
        "[data]\nmax_document_tokens = 5000\n",
        "config_value",
        13,
        "data.max_document_tokens",
        "data.max_document_tokens to 3968 or less",
    ),
    "micro-batch smaller than one row": Bad(
        "[learner]\nmicro_batch_tokens = 64\n",
        "config_value",
        13,
        "learner.micro_batch_tokens",
        "learner.micro_batch_tokens to",
    ),
    "adapters on layers that are not there": Bad(
        f"[learner.lora]\n{TARGETS}\n", "config_value", 13, "v_projj", "v_proj"
    ),
    "batch too large for memory": Bad(
        "[run]\ngroup_size = 64\n[length]\ntarget_tokens = 512\n[learner]\nmicro_batch_tokens = 65536\n",
        "plan_does_not_fit",
        14,
        "activations",
        "--set learner.micro_batch_tokens=",
        ("--memory-gib", "1.5"),
    ),
    "model too large for memory": Bad(
        "", "plan_does_not_fit", 14, "trainer", "model.name to a smaller model", ("--memory-gib", "0.3")
    ),
}


def refusal(arguments: Sequence[str]) -> TerselyError:
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, TerselyError), result.output or result.exception
    return result.exception


def check(error: TerselyError, bad: Bad) -> None:
    assert (error.kind, error.exit_code) == (bad.kind, bad.code)
    assert bad.names in error.message
    assert bad.fix in f"{error.message} {error.way_out}"
    assert error.way_out


def test_there_are_thirty_of_them() -> None:
    assert len(CHECK) + len(PLAN) >= 30


@pytest.mark.parametrize("bad", CHECK.values(), ids=CHECK.keys())
def test_a_recipe_that_contradicts_itself_is_refused(tmp_path: Path, bad: Bad) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(bad.text)
    sets = [word for item in bad.overrides for word in ("--set", item)]
    check(refusal(["config", "check", str(file), *sets]), bad)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data for recipes that are planned."""
    path = tmp_path_factory.mktemp("plan")
    make_tiny_model(path / "model")
    rows = [{"id": str(i), "document": tiny_text()[i * 200 :][:800], "summary": "short"} for i in range(4)]
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_arguments(folder: Path, text: str) -> list[str]:
    file = folder / "recipe.toml"
    file.write_text(text)
    given = {"model.name": "./model", "data.source": "./train.jsonl", "evaluation.prompts": "0"}
    sets = [f"{key}={value}" for key, value in given.items() if key.split(".")[1] + " = " not in text]
    return ["plan", str(file), "--quick", *(word for item in sets for word in ("--set", item))]


@pytest.mark.parametrize("bad", PLAN.values(), ids=PLAN.keys())
def test_a_recipe_that_can_not_work_here_is_refused(folder: Path, bad: Bad) -> None:
    check(refusal([*plan_arguments(folder, bad.text), *bad.overrides]), bad)


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    missing = next(name for name in ("mps", "cuda") if not _is_here(name))
    error = refusal(plan_arguments(folder, f'[learner]\ndevice = "{missing}"\n'))
    assert (error.kind, error.exit_code) == ("config_value", 13)
    assert "learner.device" in error.message
    assert "cpu" in error.way_out


def _is_here(device: str) -> bool:
    return torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()


def test_without_the_faults_the_recipe_is_accepted(folder: Path) -> None:
    file = folder / "good.toml"
    file.write_text("")
    assert CliRunner().invoke(app, ["config", "check", str(file)]).exit_code == 0
    result = CliRunner().invoke(app, [*plan_arguments(folder, ""), "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["peak_memory_bytes"] > 0
