"""A peer's whole step: GRPOTrainer of TRL on the CPU. A script of its own, run by the Python that has TRL.

usage: python trl_step.py JOB.json RESULT.json. Nothing of tersely is imported, and its settings are TRL's own but for
those that make the work the same: prompts, group size, exactly as many tokens, threads, fp32.
"""

import importlib.metadata
import json
import os
import pathlib
import resource
import sys
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled", TRL_EXPERIMENTAL_SILENCE="1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found, unused-ignore]

job = json.loads(pathlib.Path(sys.argv[1]).read_text())
torch.set_num_threads(job["threads"])
step_seconds: list[float] = []
lengths: list[int] = []


def length_reward(completion_ids, **_):  # type: ignore[no-untyped-def]
    """Nearness to the target; the tokens that were made are counted on the way."""
    lengths.extend(len(ids) for ids in completion_ids)
    return [-abs(len(ids) - job["completion"]) / job["completion"] for ids in completion_ids]


class Clock(TrainerCallback):
    """Times each optimizer step with all that belongs to it."""

    def on_step_begin(self, *_, **__):  # type: ignore[no-untyped-def]
        """Generation happens after this."""
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):  # type: ignore[no-untyped-def]
        """The weights have been changed."""
        step_seconds.append(time.perf_counter() - self.began)


def peak_memory_bytes() -> int:
    """Most memory held at once; on Linux not what the parent held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def main() -> None:
    """Trains for the steps of the job."""
    rows = [{"prompt": [{"role": "user", "content": prompt["content"]}]} for prompt in job["prompts"]]
    model = AutoModelForCausalLM.from_pretrained(job["model_folder"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=job["groups"] * job["group"] // job["micro_batch"],
            num_generations=job["group"],
            max_completion_length=job["completion"],
            generation_kwargs={"min_new_tokens": job["completion"]},
            max_steps=job["steps"],
            learning_rate=1e-5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        GRPOTrainer(
            model=model,
            reward_funcs=length_reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(job["model_folder"]),
            callbacks=[Clock()],
        ).train()
    result = {
        "step_seconds": [round(seconds, 3) for seconds in step_seconds],
        "completion_tokens": sorted(set(lengths)),
        "completions": len(lengths),
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("trl", "torch", "transformers")},
    }
    pathlib.Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
