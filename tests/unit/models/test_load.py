from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersely.errors import ModelInvalid
from tersely.models.load import load_policy
from tersely.models.tiny import INITIAL_STOP_PROBABILITY, make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer


def test_a_policy_is_fp32_in_eval_mode_with_the_values_of_the_file(tiny: Path) -> None:
    model = load_policy(tiny)
    assert not model.training
    stored = load_file(tiny / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert parameters.keys() == stored.keys()
    assert all(torch.equal(parameters[name], stored[name].float()) for name in stored)


def test_writing_to_a_loaded_policy_leaves_the_file_alone(tiny_copy: Path) -> None:
    # fp32 on disk is the case in which a loader may hand out the mapped file itself.
    stored = {name: tensor.float() for name, tensor in load_file(tiny_copy / "model.safetensors").items()}
    save_file(stored, tiny_copy / "model.safetensors", metadata={"format": "pt"})
    before = (tiny_copy / "model.safetensors").read_bytes()
    model = load_policy(tiny_copy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (tiny_copy / "model.safetensors").read_bytes() == before


def test_missing_tensors_are_an_error_not_random_weights(tiny_copy: Path) -> None:
    stored = load_file(tiny_copy / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, tiny_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelInvalid, match=r"lack 1 tensors.*layers\.1\.mlp\.up_proj"):
        load_policy(tiny_copy)


@pytest.mark.parametrize("change", [{"model_type": "no-such-type"}, {"hidden_size": 128}])
def test_a_config_that_does_not_fit_is_invalid(tiny_copy: Path, change: dict[str, Any]) -> None:
    path = tiny_copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelInvalid, match="can't be loaded"):
        load_policy(tiny_copy)


def test_code_in_the_folder_is_not_run(tiny_copy: Path, tmp_path: Path) -> None:
    path = tiny_copy / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    path.write_text(json.dumps(settings))
    (tiny_copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelInvalid):
        load_policy(tiny_copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("fixture", ["tiny", "tiny_qwen2"])
def test_the_tiny_model_stops_neither_at_once_nor_never(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    tokenizer = PolicyTokenizer.from_folder(folder)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Summarize: the bridge is closed for six weeks."}])
    generator = torch.Generator().manual_seed(0)
    answers = torch.randint(3, 512, (8, 64), generator=generator)
    ids = torch.cat([torch.tensor([prompt] * 8), answers], dim=1)
    with torch.no_grad():
        logits = load_policy(folder)(input_ids=ids).logits[:, len(prompt) - 1 :]
    stop = logits.softmax(-1)[..., tokenizer.stop_token_ids[0]]
    assert 0.8 * INITIAL_STOP_PROBABILITY < stop.mean().item() < 1.2 * INITIAL_STOP_PROBABILITY
    assert stop.min().item() > 0.005
    assert stop.max().item() < 0.06


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_tiny_model_is_the_same_bytes_each_time(architecture: Any, tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    first = make_tiny_model(tmp_path / "a", architecture=architecture)
    state = torch.random.get_rng_state()
    second = make_tiny_model(tmp_path / "b", architecture=architecture)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = make_tiny_model(tmp_path / "c", architecture=architecture, seed=1)
    files = sorted(path.name for path in first.iterdir())
    assert [(first / name).read_bytes() for name in files] == [(second / name).read_bytes() for name in files]
    assert (other / "model.safetensors").read_bytes() != (first / "model.safetensors").read_bytes()
    assert (other / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


def test_another_process_makes_the_same_bytes_and_says_nothing(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tersely.models.tiny import make_tiny_model;"
        "from tersely.models.load import load_policy; load_policy(make_tiny_model(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    names = sorted(path.name for path in tiny.iterdir())
    assert [(tmp_path / "again" / name).read_bytes() for name in names] == [
        (tiny / name).read_bytes() for name in names
    ]
