"""Forward and backward of one batch: the shared-prompt way against the padded way, in turns.

usage: python bench/learner.py [MODEL] [--prompt 200 --completion 48 --group 8 --groups 1 --turns 3 --threads N]

MODEL is a folder, a hub id or a built-in name (default: smollm2-135m). Prints one JSON object: seconds of each turn,
the median of each way, their ratio, and the relative difference of the two gradients. Timings of a busy machine drift,
so compare what one run printed, never two runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch

from tersely.models.device import set_threads
from tersely.models.linear import use_fast_linears
from tersely.models.load import load_policy
from tersely.models.locate import locate_model
from tersely.trainer.forward import Forward, ForwardSettings, completion_logprobs_padded, completion_logprobs_shared


def gradient(model: torch.nn.Module, forward: Forward, prompts_BP: torch.Tensor, ids_BGC: torch.Tensor) -> torch.Tensor:
    """Gradient of a weighted sum of all logprobs, one vector."""
    model.zero_grad()
    settings = ForwardSettings()
    for prompt_P, ids_GC in zip(prompts_BP, ids_BGC, strict=True):
        rows, columns = ids_GC.shape
        weights_GC = torch.linspace(-1, 1, rows)[:, None]
        result = forward(model, prompt_P, ids_GC, [columns] * rows, settings)
        (result.logprobs * weights_GC).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    for name, default in (("prompt", 200), ("completion", 48), ("group", 8), ("groups", 1), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    threads = set_threads(args.threads)
    torch.manual_seed(0)
    model = load_policy(locate_model(args.model)).train()
    use_fast_linears(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompts_BP = torch.randint(0, vocabulary, (args.groups, args.prompt))
    ids_BGC = torch.randint(0, vocabulary, (args.groups, args.group, args.completion))
    ways: dict[str, Forward] = {"padded": completion_logprobs_padded, "shared": completion_logprobs_shared}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(args.turns):
        for name, forward in ways.items():
            began = time.perf_counter()
            gradients[name] = gradient(model, forward, prompts_BP, ids_BGC)
            seconds[name].append(round(time.perf_counter() - began, 3))
    difference = (gradients["padded"] - gradients["shared"]).norm() / gradients["padded"].norm()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    facts = {
        "shape": {key: getattr(args, key) for key in ("prompt", "completion", "group", "groups")},
        "model": args.model,
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "seconds": seconds,
        "median_seconds": medians,
        "padded_over_shared": round(medians["padded"] / medians["shared"], 2),
        "relative_gradient_difference": float(difference),
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
