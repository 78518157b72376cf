"""METEOR is nltk's to the digit; without WordNet it is refused by that name, and offered under another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nltk.translate.meteor_score import single_meteor_score

from tersely.errors import RewardFailed
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards import wordnet
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.meteor import MeteorExactStemReward, MeteorReward
from tersely.scorer.rewards.words import unicode_words

SYNONYMS = {
    "noun": [
        ("car", "automobile", "motor_car"),
        ("paper", "article"),
        ("model", "framework"),
        ("goose",),
        ("boat", "ship"),
    ],
    "verb": [("propose", "suggest"), ("show", "demonstrate"), ("buy", "purchase")],
    "adj": [("big", "large")],
    "adv": [("quickly", "rapidly")],
}
TEXTS = [
    "We propose a large model and show it in the paper.",
    "The article suggests a big framework, quickly demonstrated.",
    "An automobile was bought; the car purchased rapidly.",
    "cars cars cars automobiles automobile",
    "word",
    "",
    "文章提出了一种新模型。 نموذج 🙂 42",
    "geese goose articles article ship",
    "a boat in a paper",
    " ".join(["model", "paper", "of", "the", "big", "car", "framework"] * 30),
]
PAIRS = [(text, reference) for text in TEXTS for reference in TEXTS if reference]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A WordNet of a few words, in the files that Debian's wordnet-base has."""
    folder = tmp_path_factory.mktemp("dict")
    for part, sets in SYNONYMS.items():
        pos = "r" if part == "adv" else part[0]
        data, index = "", []
        for words in sets:
            offset = f"{len(data):08d}"
            listed = " ".join(f"{word} 0" for word in words)
            frames = " 00" if pos == "v" else ""
            data += f"{offset} 03 {pos} {len(words):02x} {listed} 000{frames} | a gloss\n"
            index += [f"{word} {pos} 1 0 1 0 {offset}\n" for word in words]
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text("".join(sorted(index)))
        (folder / f"{part}.exc").write_text("geese goose\n" if part == "noun" else "")
    yield folder
    wordnet._read(folder.resolve()).close()


@pytest.fixture
def reward(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MeteorReward:
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    return MeteorReward()


class NoSynonyms:
    def synsets(self, word: str) -> list[object]:
        return []


def test_values_are_nltks_with_the_same_wordnet(reward: MeteorReward, folder: Path) -> None:
    reader = wordnet.find_wordnet({"WNSEARCHDIR": str(folder)})
    values = reward.score([RewardInput(text=text, reference=reference) for text, reference in PAIRS])
    for (text, reference), value in zip(PAIRS, values, strict=True):
        expected = single_meteor_score(unicode_words(reference), unicode_words(text), wordnet=reader)
        assert value == pytest.approx(expected, abs=1e-9), (text, reference)


def test_without_synonyms_values_are_nltks_with_an_empty_wordnet() -> None:
    values = MeteorExactStemReward().score([RewardInput(text=text, reference=reference) for text, reference in PAIRS])
    for (text, reference), value in zip(PAIRS, values, strict=True):
        expected = single_meteor_score(unicode_words(reference), unicode_words(text), wordnet=NoSynonyms())
        assert value == pytest.approx(expected, abs=1e-9), (text, reference)


def test_synonyms_count_in_meteor_alone(reward: MeteorReward) -> None:
    item = [RewardInput(text="a ship", reference="a boat")]
    (with_wordnet,), (without,) = reward.score(item), MeteorExactStemReward().score(item)
    assert with_wordnet is not None
    assert with_wordnet > (without or 0) + 0.2
    assert without == single_meteor_score(["a", "boat"], ["a", "ship"], wordnet=NoSynonyms())


def test_a_missing_wordnet_is_refused_and_the_other_name_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "_of_nltk", lambda: None)
    monkeypatch.setattr(wordnet, "_DEFAULT_FOLDERS", ())
    for name in ("WNSEARCHDIR", "WNHOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RewardFailed, match="needs WordNet") as caught:
        build_reward("meteor")
    assert "meteor_exact_stem" in str(caught.value.way_out)
    assert build_reward("meteor_exact_stem").name == "meteor_exact_stem"


def test_the_usual_folders_are_searched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordnet, "_of_nltk", lambda: None)
    monkeypatch.setattr(wordnet, "_DEFAULT_FOLDERS", (str(tmp_path / "none"), str(folder)))
    assert wordnet.find_wordnet({}) is not None
    assert wordnet.find_wordnet({"WNSEARCHDIR": str(tmp_path)}) is not None, "a folder without the files is passed over"


def test_threads_get_the_same_synonyms(folder: Path) -> None:
    found = wordnet.WordSynonyms(wordnet.find_wordnet({"WNSEARCHDIR": str(folder)}))
    words = [word for sets in SYNONYMS.values() for synonyms in sets for word in synonyms]
    seen: list[list[list[str]]] = []

    def look() -> None:
        seen.append([[lemma.name() for synset in found.synsets(word) for lemma in synset.lemmas()] for word in words])

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert all(row == seen[0] for row in seen)
    assert seen[0][0] == ["automobile", "car", "motor_car"]


@pytest.mark.parametrize("reference", ["", " \n"])
def test_without_a_reference_there_is_no_value(reference: str) -> None:
    assert MeteorExactStemReward().score([RewardInput(text="x", reference=reference)]) == [None]
