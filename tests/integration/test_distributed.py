"""Several processes train what one process trains: DDP and FSDP2 over gloo, started by torchrun."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tersely.models.tiny import make_tiny_model
from tersely.trainer import replay

PROGRAM = Path(__file__).parent / "ranks_program.py"
TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
PARALLEL = ("ddp", "fsdp")
CASES = ("even", "odd", "fewer-than-ranks", "padded", "two-steps")  # of the program
BOTH = [*((parallel, case) for parallel in PARALLEL for case in CASES), ("ddp", "adapters")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def torchrun(*command: str, processes: int = 2) -> list[str]:
    options = ["--standalone", "--nnodes=1", f"--nproc-per-node={processes}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *command]


def by_hand(rank: int, port: int) -> dict[str, str]:
    """Environment of one of two ranks, as torchrun sets it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    return {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def trainer(run_dir: Path, url: str, *more: str) -> list[str]:
    return ["-m", "tersely.cli", "trainer", "--recipe", str(TINY), "--run-dir", str(run_dir), "--redis-url", url, *more]


def run(command: Sequence[str], seconds: float = 300) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its output head tied to the input embedding, as small models have it."""
    from transformers import AutoConfig, LlamaForCausalLM

    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    tied = tmp_path_factory.mktemp("tied")
    shutil.copytree(folder, tied, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True, initializer_range=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(tied)
    return tied


@pytest.fixture(scope="module")
def results(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process, two with copies and two with shards made of the same batches."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("one", *PARALLEL)}
    run([sys.executable, str(PROGRAM), str(model_folder), str(folders["one"]), "ddp"])
    for parallel in PARALLEL:
        run(torchrun(str(PROGRAM), str(model_folder), str(folders[parallel]), parallel))
    return folders


@pytest.mark.parametrize(("parallel", "case"), BOTH)
def test_float64_gradients_are_those_of_one_process(results: dict[str, Path], parallel: str, case: str) -> None:
    one, two = (load_file(results[kind] / f"{case}-gradients.safetensors") for kind in ("one", parallel))
    assert one.keys() == two.keys()
    assert any(gradient.norm() > 0 for gradient in one.values())
    for name in one:
        assert (two[name] - one[name]).norm() <= 1e-9 * one[name].norm(), name


@pytest.mark.parametrize(("parallel", "case"), BOTH)
def test_five_steps_change_the_weights_as_in_one_process(results: dict[str, Path], parallel: str, case: str) -> None:
    before = load_file(results["one"] / f"{case}-before.safetensors")
    one, two = (load_file(results[kind] / f"{case}-state.safetensors") for kind in ("one", parallel))
    assert one.keys() == two.keys()
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    names = [name for name in one if name.startswith("master/")]

    def change(state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([(state[name].double() - before[name].double()).flatten() for name in names])

    difference = (change(two) - change(one)).norm() / change(one).norm()
    assert change(one).norm() > 1e-3
    assert difference <= 1e-4


@pytest.mark.parametrize("parallel", PARALLEL)
def test_figures_are_those_of_the_whole_batch(results: dict[str, Path], parallel: str) -> None:
    for case in CASES:  # loss, norm, tokens, entropy, largest ratio of each step
        one, two = (load_file(results[kind] / f"{case}-figures.safetensors")["figures"] for kind in ("one", parallel))
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_published_weights_have_the_names_of_one_process(results: dict[str, Path], parallel: str) -> None:
    one, two = (load_file(results[kind] / "even-published.safetensors") for kind in ("one", parallel))
    assert list(one) == list(two)
    assert all(two[name].dtype == torch.bfloat16 and two[name].shape == one[name].shape for name in one)


def test_a_follower_ends_when_rank_0_is_killed(tmp_path: Path) -> None:
    port = free_port()
    waiting = "from tersely.trainer.distributed.group import join_ranks; join_ranks(); print('joined'); input()"
    with (
        subprocess.Popen(
            [sys.executable, "-u", "-c", waiting],
            env=by_hand(0, port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as first,
        subprocess.Popen(
            [sys.executable, *trainer(tmp_path / "run", "redis://127.0.0.1:1")],
            env=by_hand(1, port),
            stderr=subprocess.PIPE,
            text=True,
        ) as second,
    ):
        assert first.stdout is not None
        assert any("joined" in line for line in first.stdout)
        first.kill()
        _, said = second.communicate(timeout=60)
    assert second.returncode == 74, said
    assert "error[rank_lost]" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_an_error_of_rank_0_is_told_once_and_ends_all(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, *trainer(tmp_path / "run", f"redis://127.0.0.1:{free_port()}")]
    ranks = [subprocess.Popen(command, env=by_hand(rank, port), stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [40, 0], said
    assert "error[redis_unreachable]" in said[0]
    assert "error" not in said[1]


def test_a_run_under_torchrun_is_resumed_by_one_process(tmp_path: Path, valkey_url: str) -> None:
    """Shards at first; then the log and the checkpoint are enough for one process, which trains two steps more."""
    run_dir = tmp_path / "run"
    sets = ["--set", "evaluation.prompts=0", "--set", "run.groups_per_step=3", "--set", "run.checkpoint_every=1"]
    parallel = [*sets, "--set", "learner.parallel=fsdp"]
    drill(run_dir, torchrun(*trainer(run_dir, valkey_url, *parallel, "--set", "run.steps=2")), valkey_url)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "version_published"] == [1, 2]
    assert (run_dir / "policy" / "model.safetensors").exists()

    alone = [sys.executable, *trainer(run_dir, valkey_url, *sets, "--set", "run.steps=4", "--resume")]
    drill(run_dir, alone, valkey_url)
    report = json.loads((run_dir / "report.json").read_text())
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert report["steps"] == 4
    assert [event["step"] for event in events if event["kind"] == "version_published"] == [1, 2, 3, 4]
    assert not [event for event in events if event["kind"] == "alarm" and event["name"] == "replay_differs"]


@pytest.mark.parametrize("parallel", PARALLEL)
def test_all_ranks_go_back_to_an_earlier_step(
    tmp_path: Path, valkey_url: str, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alarm after two steps takes the run back; one process that replays its log comes to the same weights."""
    run_dir = tmp_path / "run"
    sets = {
        "run.steps": 4,
        "run.groups_per_step": 3,
        "run.checkpoint_every": 1,
        "evaluation.prompts": 0,
        "alarms.action": "roll_back",
        "alarms.window_steps": 2,
        "alarms.entropy_floor": 100,  # no policy is that undecided
        "learner.parallel": parallel,
    }
    options = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    drill(run_dir, torchrun(*trainer(run_dir, valkey_url, *options)), valkey_url)

    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    published = [event for event in events if event["kind"] == "version_published"]
    back = [event for event in events if event["kind"] == "rolled_back"]
    assert [event["step"] for event in published] == [1, 2, 3, 4]
    assert [(event["step"], event["to_step"]) for event in back] == [(2, 1), (3, 1)]
    assert {event["weights_sha256"] for event in back} == {published[0]["weights_sha256"]}
    versions = [event["policy_version"] for event in sorted(published + back, key=lambda event: float(event["time"]))]
    assert versions == [1, 2, 3, 4, 5, 6]

    reached: list[dict[str, torch.Tensor]] = []
    hash_of = replay._weights_sha256
    monkeypatch.setattr(
        replay, "_weights_sha256", lambda learner: reached.append(learner.published()) or hash_of(learner)
    )
    assert replay.run_replay(run_dir, threads=1)["rollbacks"] == 2
    many = load_file(run_dir / "policy" / "model.safetensors")

    def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[name].double().flatten() for name in many])

    # A rank that had stayed where it was would have summed gradients of other weights.
    assert (flat(many) - flat(reached[-1])).norm() < 0.05 * (flat(reached[-1]) - flat(reached[0])).norm()


def drill(run_dir: Path, command: Sequence[str], url: str) -> None:
    """Runs a trainer to its end, with a scorer and a worker."""
    address_file = run_dir / "run.json"
    address_file.unlink(missing_ok=True)
    helpers: list[subprocess.Popen[bytes]] = []
    main = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 120
        while not address_file.exists() and main.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if main.poll() is None:
            address = json.loads(address_file.read_text())["trainer_address"]
            helpers += [
                subprocess.Popen(
                    [sys.executable, "-m", "tersely.cli", role, "--trainer", address],
                    env=ENVIRONMENT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for role in ("scorer", "rollout")
            ]
        said, _ = main.communicate(timeout=240)
        assert main.returncode == 0, said
    finally:
        main.kill()
        for helper in helpers:
            helper.kill()
            helper.wait()
