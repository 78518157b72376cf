"""What workers get beside the weights: a probe of them, and an adapter that merges to the same bits."""

from pathlib import Path

import pytest
import torch

from tersely.config.learner import LoraSection
from tersely.testing.channel import hash_of
from tersely.testing.modules import load_module
from tersely.trainer.learner import Learner
from tersely.trainer.publishing import prepare_version
from tersely.weights.adapter import merge_payload
from tersely.weights.store import SnapshotStore

_models = load_module(Path(__file__).with_name("models.py"))
_learners = load_module(Path(__file__).with_name("learners.py"))
make_group = _learners.make_group

pytestmark = pytest.mark.usefixtures("one_thread")


def make_learner(monkeypatch: pytest.MonkeyPatch, **settings: object) -> Learner:
    learner: Learner = _learners.make_learner(monkeypatch, **settings)
    return learner


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=1)


@pytest.mark.parametrize("lora", [None, LoraSection(rank=4, alpha=8)], ids=["all weights", "adapter"])
def test_the_probe_is_what_the_published_weights_say(
    monkeypatch: pytest.MonkeyPatch, store: SnapshotStore, lora: LoraSection | None
) -> None:
    learner = make_learner(monkeypatch, lora=lora, learning_rate=1e-2)
    before = learner.probe()
    learner.train([make_group(1)], 1)
    probe = prepare_version(store, 1, learner).manifest.probe
    model = _models.make_model("llama")
    model.load_state_dict({name: t.float() for name, t in learner.published().items()}, strict=False)
    ids = torch.tensor([list(probe.token_ids)])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, ids[0, 1:, None])[:, 0]
    assert torch.allclose(torch.tensor(list(probe.logprobs)), expected, rtol=0, atol=1e-5)
    # One step of training shows.
    assert list(before.token_ids) == list(probe.token_ids)
    assert (torch.tensor(before.logprobs) - expected).abs().max() > 1e-3


def test_an_adapter_merges_to_what_is_published(monkeypatch: pytest.MonkeyPatch, store: SnapshotStore) -> None:
    learner = make_learner(monkeypatch, lora=LoraSection(rank=4, alpha=8), learning_rate=1e-2)
    base = prepare_version(store, 0, learner)
    store.keep_adapter_base(base)
    for step in (1, 2, 3):
        learner.train([make_group(step)], step)
    snapshot = prepare_version(store, 3, learner)
    assert snapshot.adapter is not None
    assert snapshot.manifest.adapter_base.weights_sha256 == base.label.weights_sha256
    assert snapshot.payload != base.payload
    layout, data = snapshot.adapter.layout, bytearray(snapshot.adapter.data)
    assert merge_payload(layout, snapshot.manifest.tensors, base.payload, data) == snapshot.payload
    assert hash_of(learner.published()) == snapshot.label.weights_sha256


def test_a_run_that_trains_all_weights_has_no_adapter(monkeypatch: pytest.MonkeyPatch, store: SnapshotStore) -> None:
    learner = make_learner(monkeypatch)
    assert learner.low_rank() is None
    snapshot = prepare_version(store, 0, learner)
    assert snapshot.adapter is None
    assert not snapshot.manifest.HasField("adapter_base")
