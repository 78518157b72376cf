"""Lets TRL's own functions give losses, gradients and advantages on random inputs, for `test_grpo_trl.py`.

Runs in an environment of TRL's, which needs nothing of this project:

    python -m venv trl && trl/bin/pip install trl==1.16.0 torch
    trl/bin/python tests/golden/make_trl_values.py > tests/golden/trl_values.json

The functions are `GRPOTrainer._compute_loss` and `GRPOTrainer._generate_and_score_completions` as they are in the
package. Only what they call is replaced: generation, the model's logprobs and the reward functions give the random
inputs. All in float64.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
import trl
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

LENGTHS = (6, 3, 1, 4, 5, 2)
GROUP = 3
LONGEST = 8
CLIP = (0.2, 0.28)
CAP = 1.5
BETA = 0.07

torch.set_default_dtype(torch.float64)


class OneProcess:
    """What is called of an accelerator, in a run of one process."""

    num_processes = 1
    process_index = 0
    device = torch.device("cpu")
    sync_gradients = True

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return tensor


class Stub(SimpleNamespace):
    """A trainer without a model: settings it was not given are off."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def trainer(loss: str, correction: str, beta: float, tables: dict[str, torch.Tensor]) -> Stub:
    """A stub whose logprobs come from `tables` instead of from a model."""
    stub = Stub(
        accelerator=OneProcess(),
        args=Stub(
            delta=None,
            use_bias_correction_kl=False,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=len(LENGTHS),
            report_to=[],
        ),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        loss_type="grpo" if loss == "gspo" else loss,
        importance_sampling_level="sequence" if loss == "gspo" else "token",
        epsilon_low=CLIP[0],
        epsilon_high=1 + CLIP[1] if loss == "cispo" else CLIP[1],
        beta=beta,
        use_vllm=correction != "none",
        vllm_importance_sampling_correction=correction != "none",
        vllm_importance_sampling_mode={"tis": "token_truncate", "mask": "token_mask"}.get(correction),
        vllm_importance_sampling_clip_max=CAP,
        max_completion_length=LONGEST,
        num_iterations=1,
        num_generations=GROUP,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
        reward_funcs=[],
        reward_func_names=[],
        reward_weights=torch.ones(1),
        chat_template_kwargs={},
        mask_truncated_completions=False,
        aux_loss_enabled=False,
        log_multimodal=False,
        _pending_metrics={},
        _pending_extra_logs={},
        _metrics={"train": defaultdict(list)},
        _logs={"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list)},
        _tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=1),
    )
    stub.ref_model = "reference"

    def logprobs(model: object, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor, None]:
        table = tables["reference" if model == "reference" else "policy" if model == "policy" else "start"]
        return table, torch.zeros_like(table), None

    stub._get_per_token_logps_and_entropies = logprobs
    return stub


def score(stub: Stub, behaviour: list[list[float]], rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run TRL's scoring of a batch: importance weights and advantages."""
    completions = [[2] * len(row) for row in behaviour]
    prompts = [[3]] * len(behaviour)
    stub._generate = lambda texts: (prompts, completions, None, texts, behaviour, {}, None, None)
    stub._calculate_rewards = lambda *_: rewards
    stub.reward_funcs = stub.reward_func_names = [f"r{k}" for k in range(rewards.shape[1])]
    return GRPOTrainer._generate_and_score_completions(stub, [{"prompt": "p"}] * len(behaviour))


def ragged(table: torch.Tensor) -> list[list[float]]:
    return [row[:length].tolist() for row, length in zip(table, LENGTHS, strict=True)]


def losses(generator: torch.Generator) -> dict[str, object]:
    shape = (len(LENGTHS), max(LENGTHS))

    def noise(spread: float) -> torch.Tensor:
        return spread * torch.randn(shape, generator=generator)

    behaviour = -noise(1.5).abs()
    start = behaviour + noise(0.5)
    policy = start + noise(0.3)
    tables = {"start": start, "reference": policy + noise(0.5)}
    values = torch.randn(len(LENGTHS), generator=generator)
    cases = []
    for loss, correction, beta in itertools.product(
        ("dapo", "grpo", "dr_grpo", "gspo", "cispo"), ("none", "tis", "mask"), (0.0, BETA)
    ):
        tables["policy"] = policy.clone().requires_grad_()
        stub = trainer(loss, correction, beta, tables)
        inputs = score(stub, ragged(behaviour), torch.randn(len(LENGTHS), 1, generator=generator))
        inputs["advantages"] = values
        if correction == "none":
            inputs["old_per_token_logps"] = behaviour
        inputs["ref_per_token_logps"] = tables["reference"]
        got = GRPOTrainer._compute_loss(stub, "policy", inputs)
        got.backward()
        cases.append(
            {
                "loss": loss,
                "correction": correction,
                "kl_coefficient": beta,
                "value": got.item(),
                "gradient": ragged(tables["policy"].grad),
            }
        )
    return {
        "clip_low": CLIP[0],
        "clip_high": CLIP[1],
        "correction_cap": CAP,
        "max_completion_tokens": LONGEST,
        "policy": ragged(policy),
        "behaviour": ragged(behaviour),
        "start": ragged(start),
        "reference": ragged(tables["reference"]),
        "advantages": values.tolist(),
        "cases": cases,
    }


def advantages(generator: torch.Generator) -> dict[str, object]:
    rewards = torch.randn(len(LENGTHS), 2, generator=generator) * torch.tensor([1.0, 20.0])
    cases = []
    for combine, scale, weights, missing in (
        ("sum_then_normalize", "group", [1.0], False),
        ("sum_then_normalize", "none", [1.0], False),
        ("sum_then_normalize", "group", [1.0], True),
        ("sum_then_normalize", "group", [1.0, 0.25], False),
        ("sum_then_normalize", "none", [1.0, -0.5], False),
        ("normalize_then_sum", "group", [1.0, 0.25], False),
        ("normalize_then_sum", "group", [1.0, -0.5], False),
    ):
        stub = trainer("dapo", "none", 0.0, {"start": torch.zeros(len(LENGTHS), max(LENGTHS))})
        stub.multi_objective_aggregation, stub.scale_rewards = combine, scale
        stub.reward_weights = torch.tensor(weights)
        table = rewards[:, : len(weights)].clone()
        if missing:
            table[1] = torch.nan
        got = score(stub, [[0.0]] * len(LENGTHS), table)["advantages"]
        cases.append(
            {
                "combine": combine,
                "scale": "std" if scale == "group" else "none",
                "weights": weights,
                "missing": [1] if missing else [],
                "value": got.reshape(-1, GROUP).tolist(),
            }
        )
    return {"rewards": rewards.T.reshape(2, -1, GROUP).tolist(), "cases": cases}


def main() -> None:
    grpo_trainer.gather_object = list
    generator = torch.Generator().manual_seed(2026)
    result = {"trl": trl.__version__, "losses": losses(generator), "advantages": advantages(generator)}
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
