"""The scorer's benchmark measures what it says, on texts that need no network."""

import pytest

from tersely.cli.bench_scorer import lines
from tersely.errors import DownloadFailed
from tersely.scorer import benching


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(split: str) -> None:
        raise DownloadFailed("no network", "Get one.")

    monkeypatch.setattr(benching, "load_aclsum", fail)


@pytest.mark.usefixtures("no_network")
def test_it_prints_both_rates_and_scores_the_same_as_rouge_score_on_the_way() -> None:
    said: list[str] = []
    found = benching.run_bench_scorer(turns=1, groups=4, progress=said.append)
    assert found["pairs_per_second"] > 0
    assert found["ratio_over_rouge_score"] > 0
    assert found["details"]["largest_difference"] < 1e-9
    assert set(found["details"]["other_rewards_pairs_per_second"]) == set(benching.OTHERS)
    assert "no network" in found["details"]["texts"]
    assert "no network" in said[0]
    assert len(lines(found)) == 3 + len(benching.OTHERS)


def test_groups_share_a_reference_and_differ_in_their_texts() -> None:
    made = benching.make_groups(benching.made_texts(2, seed=1), 3, seed=1)
    assert [len(group) for group in made] == [8, 8, 8]
    for group in made:
        assert len({item.reference for item in group}) == 1
        assert len({item.text for item in group}) > 1
        assert all(20 <= len(item.text.split()) <= 60 for item in group)
