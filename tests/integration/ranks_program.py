"""Run as one process or under torchrun: trains on fixed batches and leaves what came out of it in a folder.

Usage: python ranks_program.py MODEL_FOLDER OUT ddp|fsdp
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tersely.config.learner import LearnerSection
from tersely.grpo.group_advantages import batch_advantages
from tersely.trainer import learner as learner_module
from tersely.trainer.distributed.launch import world_size
from tersely.trainer.distributed.ranks import Ranks
from tersely.trainer.distributed.tensors import whole
from tersely.trainer.groups import batch_counts, group_rows
from tersely.trainer.learner import Learner, TrainingGroup
from tersely.types import GroupId

OPTIMIZER_STEPS = 5  # at most; from then on single roundings to bf16 that fall the other way make differences grow
REWARDS = {"length": 1.0}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    # name: groups per batch, settings
    "even": (4, {}),
    "odd": (3, {"micro_batch_tokens": 64}),
    "fewer-than-ranks": (1, {"recompute": True}),
    "padded": (3, {"shared_prompt": False}),
    "adapters": (3, {"lora": {"rank": 2}}),
    "two-steps": (3, {"optimizer_steps_per_batch": 2, "correction": "tis", "kl_coefficient": 0.1}),
}


def batch_of(groups: int, seed: int) -> list[TrainingGroup]:
    """Groups whose prompts, completions and numbers of samples all differ in length; one sample can't be scored."""
    rng = random.Random(seed)
    batch = []
    for number in range(groups):
        ids = [tuple(rng.choices(range(3, 500), k=rng.randint(1, 24))) for _ in range(rng.randint(3, 6))]
        rewards: list[float | None] = [rng.random() for _ in ids]
        if number == 1:
            rewards[0] = None
        batch.append(
            TrainingGroup(
                group_id=GroupId(f"g{number}"),
                prompt_ids=tuple(rng.choices(range(3, 500), k=rng.randint(2, 40))),
                completion_ids=tuple(ids),
                behaviour_logprobs=tuple(tuple(rng.uniform(-7, -5) for _ in row) for row in ids),
                rewards={"length": tuple(rewards)},
            )
        )
    return batch


def make_learner(folder: Path, settings: dict[str, Any], ranks: Ranks | None) -> Learner:
    section = LearnerSection.model_validate({"device": "cpu", "threads": 1, "learning_rate": 1e-3, **settings})
    return Learner(
        folder,
        section,
        temperature=1.0,
        reward_weights=lambda step: REWARDS,
        total_steps=OPTIMIZER_STEPS,
        max_completion_tokens=32,
        ranks=ranks,
    )


def float64_gradient(
    folder: Path, groups: int, settings: dict[str, Any], ranks: Ranks | None
) -> dict[str, torch.Tensor]:
    """The gradient of one batch in float64, by the learner's own way through it."""
    load = vars(learner_module)["load_policy"]
    vars(learner_module)["load_policy"] = lambda folder: load(folder).double()
    learner = make_learner(folder, {**settings, "kl_coefficient": 0.0}, ranks)
    vars(learner_module)["load_policy"] = load
    batch = batch_of(groups, seed=groups)
    advantages = batch_advantages([group.rewards for group in batch], REWARDS)
    costs = [len(group.prompt_ids) for group in batch]
    rows = [group_rows(batch[index], advantages[index], torch.device("cpu")) for index in learner._ranks.share(costs)]
    learner._add_gradients(
        [group for group in rows if group is not None],
        batch_counts(batch, advantages),
        {"forward": 0.0, "backward": 0.0, "optimizer": 0.0},
    )
    gradients = {}
    for name, parameter in learner._model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None
        assert parameter.dtype == parameter.grad.dtype == torch.float64
        gradients[name] = whole(parameter.grad)
    return gradients


def main(folder: Path, out: Path, parallel: str) -> None:
    torch.set_num_threads(1)
    ranks = None
    if world_size() > 1:
        from tersely.trainer.distributed.group import join_ranks

        ranks = join_ranks()
        ranks.choose(parallel)  # type: ignore[arg-type]
    first = ranks is None or ranks.rank == 0
    for name, (groups, settings) in CASES.items():
        if parallel == "fsdp" and "lora" in settings:
            continue  # refused
        gradients = float64_gradient(folder, groups, settings, ranks)
        learner = make_learner(folder, settings, ranks)
        before, _ = learner.state()
        # A state goes back to where it came from, on all ranks.
        learner.load_state(before, {"optimizer_steps": 0})
        figures = []
        for step in range(1, OPTIMIZER_STEPS // learner._section.optimizer_steps_per_batch + 1):
            health = learner.train(batch_of(groups, seed=100 * groups + step), step)
            figures.append([health.loss, health.grad_norm, health.trained_tokens, health.entropy, health.ratio_max])
        state, meta = learner.state()
        published = learner.published()
        # On it goes from a state, as it would have without.
        learner.load_state(state, meta)
        again = learner.published()
        assert all(torch.equal(published[key], again[key]) for key in published)
        if first:
            save_file(gradients, out / f"{name}-gradients.safetensors")
            save_file(before, out / f"{name}-before.safetensors")
            save_file(state, out / f"{name}-state.safetensors")
            save_file(published, out / f"{name}-published.safetensors")
            save_file({"figures": torch.tensor(figures, dtype=torch.float64)}, out / f"{name}-figures.safetensors")
    if ranks is not None:
        ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
