from __future__ import annotations

from collections import Counter

from tersely.config.schema import DataSection
from tersely.data.prompts import PromptBook, prepare_prompts
from tersely.data.records import Record
from tersely.data.targets import draw_target
from tersely.models.tokenizer import PolicyTokenizer


def test_targets_are_drawn_evenly_with_both_ends_and_alike_each_time() -> None:
    drawn = Counter(draw_target((10, 14), 3, number, "a") for number in range(5000))
    assert sorted(drawn) == [10, 11, 12, 13, 14]
    assert all(900 < count < 1100 for count in drawn.values())
    assert draw_target((10, 200), 3, 7, "a") == draw_target((10, 200), 3, 7, "a")


def test_seed_number_and_prompt_each_change_what_is_drawn() -> None:
    base = [draw_target((0, 10**6), 3, number, "a") for number in range(20)]
    for other in (
        [draw_target((0, 10**6), 4, number, "a") for number in range(20)],
        [draw_target((0, 10**6), 3, number, "b") for number in range(20)],
        base[1:] + base[:1],
    ):
        assert all(one != two for one, two in zip(base, other, strict=True))
    assert draw_target((64, 64), 3, 7, "a") == 64


def test_a_book_gives_each_prompt_with_the_length_asked_for_and_the_reference_that_fits(
    tokenizer: PolicyTokenizer,
) -> None:
    data = DataSection(max_document_tokens=64)
    records = [
        Record("a", "The lake is frozen.", "The long reference.", "Short.", 20),
        Record("b", "word " * 500, "Only one."),
    ]
    book = PromptBook(records, tokenizer, data)
    assert (len(book), book.prompt_id(1), book.documents_cut) == (2, "b", 1)
    short, long = book.prompt(0, 12), book.prompt(0, 40)
    assert (short.prompt_id, long.prompt_id) == ("a", "a")
    assert (short.target_tokens, short.reference) == (12, "Short.")
    assert (long.target_tokens, long.reference) == (40, "The long reference.")
    assert "in about 12 tokens" in tokenizer.decode(short.token_ids)
    assert book.prompt(1, 12).reference == "Only one."
    assert [book.prompt(index, 40) for index in range(2)] == prepare_prompts(records, tokenizer, data, 40)
    assert book.prompt(0, 12) is short, "encoded once"
