"""Run as a process: does what a trainer does with memory, at the longest lengths of a recipe, and prints its peak.

Usage: python trainer_memory.py RECIPE STEPS FOLDER
"""

import resource
import sys
from pathlib import Path

import tersely.trainer.service  # all that a trainer imports
from tersely.config import load_recipe
from tersely.data.prompts import prepare_prompt
from tersely.data.records import load_records
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.checkpoint import Keeping, write_checkpoint
from tersely.trainer.learner import Learner, TrainingGroup
from tersely.types import GroupId
from tersely.weights.store import SnapshotStore


def peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss it does not begin with what the parent had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main(recipe_file: Path, steps: int, folder: Path) -> None:
    recipe = load_recipe(recipe_file).recipe
    model_folder = locate_model(recipe.model.name)
    tokenizer = PolicyTokenizer.from_folder(model_folder)
    records = load_records(recipe.data, recipe.data.train_split)
    prompts = [prepare_prompt(one, tokenizer, recipe.data, recipe.length.longest_target).token_ids for one in records]
    prompt, tokens, size = max(prompts, key=len), recipe.max_completion_tokens, recipe.run.group_size
    learner = Learner(
        model_folder,
        recipe.learner,
        temperature=recipe.sampling.temperature,
        reward_weights=recipe.reward_weights,
        total_steps=steps,
        max_completion_tokens=tokens,
        stop_token_ids=tokenizer.stop_token_ids,
    )
    store = SnapshotStore("run", model_folder, tokenizer.stop_token_ids, recipe.rpc.chunk_bytes, 1)
    store.pin(store.publish(0, learner.published()))
    for step in range(1, steps + 1):
        batch = [
            TrainingGroup(
                group_id=GroupId(f"{step}-{index}"),
                prompt_ids=prompt,
                completion_ids=tuple(tuple((7 * row + place) % 500 for place in range(tokens)) for row in range(size)),
                behaviour_logprobs=((-1.0,) * tokens,) * size,
                rewards={name: tuple(float(row) for row in range(size)) for name in recipe.rewards},
            )
            for index in range(recipe.run.groups_per_step)
        ]
        learner.train(batch, step)
        store.publish(step, learner.published())
    tensors, meta = learner.state()
    write_checkpoint(
        folder, step=steps, policy_version=steps, weights_sha256="", tensors=tensors, learner=meta, keeping=Keeping(1)
    )
    assert tersely.trainer.service
    print(peak_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
