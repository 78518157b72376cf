"""Exports of a run: the published weights, loadable by plain Transformers, with a card that says what they are."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tersely.cli.main import app
from tersely.config import Recipe
from tersely.config.learner import LearnerSection
from tersely.errors import CheckpointInvalid, ConfigValue, RunDirMissing
from tersely.models.load import load_policy
from tersely.models.provenance import read_provenance
from tersely.models.tiny import make_tiny_model
from tersely.trainer.card import interval
from tersely.trainer.checkpoint import Keeping, write_checkpoint
from tersely.trainer.export import export_policy, published_sha256, run_export
from tersely.trainer.learner import Learner
from tersely.trainer.masters import MasterWeights
from tersely.trainer.provenance import provenance_of
from tersely.types import PolicyVersion, WeightsLabel

STEPS = (2, 4)


def evaluation(name: str, sha: str, share: float) -> dict[str, Any]:
    rows = [
        {
            "prompt_id": f"p{index}",
            "mode": mode,
            "tokens": 60 + index % 5,
            "abs_length_error": 4 - index % 5,
            "within_5": index < share * 20,
            "stopped": True,
            "rewards": {"length": -0.1 * (index % 3), "rouge_l": 0.2},
            "rouge_l": 0.2,
        }
        for index in range(20)
        for mode in ("greedy", "sampled")
    ]
    return {"name": name, "weights_sha256": sha, "rows": rows}


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The commands set up logging for their process."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-chat")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def published(model_folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """What a run published after two of its steps."""
    found = {}
    for step in STEPS:
        masters = changed_masters(model_folder, step)
        found[step] = masters.published()
    return found


def changed_masters(model_folder: Path, step: int) -> MasterWeights:
    model = load_policy(model_folder)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return MasterWeights(model, LearnerSection())


@pytest.fixture
def run_dir(tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]) -> Path:
    """A run that was stopped after its fourth step of six."""
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = Recipe.model_validate(
        {"run": {"steps": 6}, "model": {"name": str(model_folder)}, "queue": {"url": "redis://secret-host:6379"}}
    )
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"run_id": "r-1"}))
    for step in STEPS:
        masters = changed_masters(model_folder, step)
        tensors, learner = masters.state()
        write_checkpoint(
            folder / "checkpoints",
            step=step,
            policy_version=step,
            weights_sha256=published_sha256(published[step]),
            tensors=tensors,
            learner=learner,
            keeping=Keeping(9),
        )
    return folder


def write_evaluations(run_dir: Path, sha: str) -> None:
    (run_dir / "evaluation-before.json").write_text(json.dumps(evaluation("before", "0" * 64, 0.25)))
    (run_dir / "evaluation-after.json").write_text(json.dumps(evaluation("after", sha, 0.75)))


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_plain_transformers_loads_the_export_with_equal_logits(
    run_dir: Path, tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    run_export(run_dir, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    policy = load_policy(model_folder)
    policy.load_state_dict({name: tensor.float() for name, tensor in published[4].items()}, strict=False)
    ids = tokenizer("A text of some words.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded.float()(ids).logits, policy(ids).logits)
    assert tokenizer.chat_template


@pytest.mark.parametrize(("which", "step"), [("last", 4), ("2", 2), ("4", 4), ("best", 2)])
def test_each_checkpoint_can_be_had(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]], which: str, step: int
) -> None:
    best = {"step": 2, "weights_sha256": published_sha256(published[2])}
    (run_dir / "best.json").write_text(json.dumps(best))
    found = run_export(run_dir, tmp_path / "out", which)
    assert (found["step"], found["policy_version"], found["finished"]) == (step, step, False)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert equal(weights, published[step])
    assert found["weights_sha256"] == published_sha256(weights)


def test_after_a_roll_back_the_last_is_the_newest_version_and_not_the_highest_step(
    run_dir: Path, tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    tensors, learner = changed_masters(model_folder, 2).state()
    write_checkpoint(
        run_dir / "checkpoints",
        step=3,
        policy_version=7,
        weights_sha256=published_sha256(published[2]),
        tensors=tensors,
        learner=learner,
        keeping=Keeping(9),
    )
    assert run_export(run_dir, tmp_path / "out")["step"] == 3


def test_the_card_says_where_the_policy_comes_from_and_how_well_it_does(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    write_evaluations(run_dir, published_sha256(published[4]))
    run_export(run_dir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "| share within ±5 tokens of the target, greedy | 0.250 [0.112, 0.469] | 0.750 [0.531, 0.888] |" in card
    assert "| rouge_l, sampled | 0.200 | 0.200 | +0.000 [+0.000, +0.000] | 20 |" in card
    assert published_sha256(published[4]) in card
    assert "Summarize the following text in about {target_tokens} tokens." in card
    recipe = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert recipe["run"]["steps"] == 6
    assert recipe["model"]["name"] == "tiny-chat"
    assert str(tmp_path) not in card
    assert "secret-host" not in card + (tmp_path / "out" / "tersely.json").read_text()
    provenance = read_provenance(tmp_path / "out")
    assert provenance is not None
    assert (provenance["run_id"], provenance["step"]) == ("r-1", 4)


def test_figures_of_other_weights_are_not_shown_on_the_card(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    write_evaluations(run_dir, published_sha256(published[4]))
    run_export(run_dir, tmp_path / "out", "2")
    assert "These weights were not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_the_python_of_the_card_runs(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export(run_dir, tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "document.txt").write_text("A short text. It has two sentences.")
    code = (tmp_path / "FOLDER" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace('open("document.txt").read()', '__import__("pathlib").Path("document.txt").read_text()')
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out != ""


def test_the_policy_of_a_finished_run_is_taken_from_its_own_export(
    run_dir: Path, tmp_path: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    label = WeightsLabel(PolicyVersion(4), published_sha256(published[4]))
    recipe = Recipe.model_validate_json((run_dir / "recipe.json").read_text())
    export_policy(model_folder, published[4], run_dir / "policy", provenance_of(run_dir, recipe, "r-1", 4, label))
    (run_dir / "report.json").write_text(json.dumps({"run_id": "r-1", "policy_version": 4}))
    (run_dir / "checkpoints" / "step-000004" / "state.safetensors").write_bytes(b"no longer needed")
    found = run_export(run_dir, tmp_path / "out")
    assert found["finished"]
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), published[4])


def test_weights_other_than_those_published_are_refused(run_dir: Path, tmp_path: Path) -> None:
    file = run_dir / "checkpoints" / "step-000004" / "state.json"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({**meta, "weights_sha256": "f" * 64}))
    with pytest.raises(CheckpointInvalid, match="not those that the run published"):
        run_export(run_dir, tmp_path / "out")
    save_file({"x": torch.zeros(1)}, file.with_name("state.safetensors"))
    with pytest.raises(CheckpointInvalid, match="hash"):
        run_export(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirMissing, match="There is no run"):
        run_export(tmp_path, tmp_path / "out")
    with pytest.raises(RunDirMissing, match="it has 2, 4"):
        run_export(run_dir, tmp_path / "out", "3")
    with pytest.raises(RunDirMissing, match="no best checkpoint"):
        run_export(run_dir, tmp_path / "out", "best")
    for folder in (run_dir / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(RunDirMissing, match="no checkpoint yet"):
        run_export(run_dir, tmp_path / "out")


def test_the_command_replaces_an_export_but_nothing_else(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        app(["export", str(run_dir), "--to", str(out), "--json"], standalone_mode=False)
        assert json.loads(capsys.readouterr().out)["path"] == str(out)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "me.jpg").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        app(["export", str(run_dir), "--to", str(photos)])
    assert ended.value.code == 2
    assert [file.name for file in photos.iterdir()] == ["me.jpg"]


def test_files_of_the_user_in_an_older_export_are_named_and_stay(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_export(run_dir, out)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    (out / "notes.md").write_text("mine")
    with pytest.raises(ConfigValue, match=r"\.git/HEAD, notes\.md"):
        run_export(run_dir, out, "2")
    assert (out / "notes.md").read_text() == "mine"
    assert (read_provenance(out) or {})["step"] == 4
    (out / "notes.md").unlink()
    (out / ".git" / "HEAD").unlink()
    (out / ".git").rmdir()
    run_export(run_dir, out, "2")
    assert (read_provenance(out) or {})["step"] == 2


@pytest.mark.parametrize("mark", ["run.json", "log/run.wal"])
@pytest.mark.parametrize("inside", ["", "policy", "some/where"])
def test_no_run_directory_is_written_into(run_dir: Path, tmp_path: Path, mark: str, inside: str) -> None:
    other = tmp_path / "other-run"
    (other / mark).parent.mkdir(parents=True)
    (other / mark).write_text("{}")
    for run in (run_dir, other):
        before = sorted(run.rglob("*"))
        with pytest.raises(ConfigValue, match="inside the run directory"):
            run_export(run_dir, run / inside)
        assert sorted(run.rglob("*")) == before


def test_the_base_model_is_not_replaced_by_what_came_of_it(run_dir: Path, model_folder: Path) -> None:
    with pytest.raises(ConfigValue, match="began with"):
        run_export(run_dir, model_folder)
    assert not (model_folder / "tersely.json").exists()


def test_a_run_replaces_its_own_policy_but_leaves_what_was_put_beside_it(
    run_dir: Path, model_folder: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    recipe = Recipe.model_validate_json((run_dir / "recipe.json").read_text())
    policy = run_dir / "policy"
    for step in STEPS:
        label = WeightsLabel(PolicyVersion(step), published_sha256(published[step]))
        export_policy(model_folder, published[step], policy, provenance_of(run_dir, recipe, "r-1", step, label))
        (policy / "mine").mkdir(exist_ok=True)
        (policy / "mine" / "notes.md").write_text("mine")
    assert (policy / "mine" / "notes.md").read_text() == "mine"
    assert equal(load_file(policy / "model.safetensors"), published[4])
    assert (read_provenance(policy) or {})["step"] == 4
    assert not (run_dir / "policy.partial").exists()


def test_the_card_tells_trained_rewards_from_measured_ones(
    run_dir: Path, tmp_path: Path, published: dict[int, dict[str, torch.Tensor]]
) -> None:
    tree = json.loads((run_dir / "recipe.json").read_text())
    tree["rewards"] = {"length": {"weight": 1.0}, "rouge_l": {"weight": 0.5}, "bleu": {"weight": 0.0}}
    (run_dir / "recipe.json").write_text(json.dumps(tree))
    run_export(run_dir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Rewards: `length` (weight 1), `rouge_l` (weight 0.5). Measured only, weight 0: `bleu`." in card
    tree["stages"] = [
        {"name": "first", "steps": 2, "rewards": {"length": {"weight": 1.0}}},
        {"name": "then", "steps": 4, "rewards": {"length": {"weight": 1.0}, "bleu": {"weight": 0.25}}},
    ]
    (run_dir / "recipe.json").write_text(json.dumps(tree))
    run_export(run_dir, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`length` (weight 1), `bleu` (weight 0 to 0.25, by stage). Measured only, weight 0: `rouge_l`." in card


def test_a_damaged_recipe_is_named(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "recipe.json").write_text('{"run": ')
    with pytest.raises(ConfigValue, match=r"recipe\.json is not a recipe"):
        run_export(run_dir, tmp_path / "out")


@pytest.mark.parametrize("update", [{"ablate": ["no_stop_token"]}, {"device": "cuda"}])
def test_a_lora_run_is_exported_whatever_it_was_trained_with(
    lora_run: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, update: dict[str, Any]
) -> None:
    run_dir, published = lora_run
    tree = json.loads((run_dir / "recipe.json").read_text())
    tree["learner"].update(update)
    (run_dir / "recipe.json").write_text(json.dumps(tree))
    run_export(run_dir, tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), published)
    readable = stat.S_IMODE((tmp_path / "out" / "config.json").stat().st_mode)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == readable


@pytest.fixture
def lora_run(tmp_path: Path, model_folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that trains an adapter, and what it published at its first checkpoint."""
    recipe = Recipe.model_validate(
        {"model": {"name": str(model_folder)}, "learner": {"lora": {"rank": 4}, "device": "cpu", "threads": 1}}
    )
    run_dir = tmp_path / "lora-run"
    run_dir.mkdir()
    (run_dir / "recipe.json").write_text(recipe.model_dump_json())
    learner = Learner(
        model_folder,
        recipe.learner,
        temperature=1.0,
        reward_weights=recipe.reward_weights,
        total_steps=1,
        max_completion_tokens=96,
    )
    tensors, facts = learner.state()
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    learner.load_state(tensors, facts)
    published = learner.published()
    write_checkpoint(
        run_dir / "checkpoints",
        step=1,
        policy_version=1,
        weights_sha256=published_sha256(published),
        tensors=tensors,
        learner=facts,
        keeping=Keeping(1),
    )
    return run_dir, published


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_lora_run_exports_merged_weights_and_an_adapter_that_peft_loads(
    lora_run: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, model_folder: Path
) -> None:
    run_dir, published = lora_run
    run_export(run_dir, tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), published)
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")(ids).logits
    # The merged weights are rounded to bf16, the adapter is not.
    assert (adapted - after).norm() < 0.03 * (after - before).norm()
    assert "adapter/" in (tmp_path / "out" / "README.md").read_text()


def test_intervals() -> None:
    assert interval([1.0], is_share=True) is None
    assert interval([0.3, 0.3], is_share=True) is None
    assert interval([0.0] * 9, is_share=False) is None  # a reward that is 0 everywhere, not a share
    low, high = interval([1.0] * 20, is_share=True) or (0, 0)
    assert (round(low, 3), round(high, 3)) == (0.839, 1.0)  # Wilson, by hand: n / (n + z^2)
    low, high = interval([0.1, 0.2, 0.3, 0.4], is_share=True) or (0, 0)
    assert 0.1 <= low < 0.25 < high <= 0.4
