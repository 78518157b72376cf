from __future__ import annotations

import json
import math

import pytest

from tersely.judge.reply import BadReply, Reply, Token, read_reply, score_odds
from tersely.testing.judge_server import BAD_CONTENTS


def token(text: str, **alternatives: float) -> Token:
    odds = {text: 1.0} if not alternatives else {name.removeprefix("s"): share for name, share in alternatives.items()}
    return Token(text, math.log(odds.get(text, 1.0)), tuple((name, math.log(share)) for name, share in odds.items()))


def reply_of(*texts: Token) -> tuple[Reply, str, list[Token]]:
    tokens = [token('{"reason": "it says 8 of 10", "score": '), *texts, token("}")]
    content = "".join(each.text for each in tokens)
    return read_reply(content), content, tokens


@pytest.mark.parametrize(
    "content",
    [
        '{"reason": "r", "score": 7}',
        '```json\n{"reason": "r", "score": 7}\n```',
        'Sure: {"score": 7.0, "reason": "r"} done',
    ],
)
def test_the_object_that_was_asked_for_is_read(content: str) -> None:
    found = read_reply(content)
    assert (found.score, found.reason) == (7, "r")
    assert content[found.score_at] == "7"


@pytest.mark.parametrize(
    "content",
    [
        *BAD_CONTENTS,
        '{"reason": "r", "score": 11}',
        '{"reason": "r", "score": -1}',
        '{"reason": "r", "score": true}',
        '{"reason": "r", "score": 7.5}',
        '{"reason": "r", "score": "7"}',
        '{"reason": "r", "score": NaN}',
        '{"reason": "r", "score": 1e400}',
        '{"reason": "", "score": 7}',
        '{"reason": 3, "score": 7}',
        '{"reason": "r", "score": 7, "verdict": "pass"}',
        "[1]",
        "{" * 100_000,
    ],
)
def test_anything_else_is_no_score(content: str) -> None:
    with pytest.raises(BadReply):
        read_reply(content)


def test_the_place_of_the_score_is_that_of_the_key_and_not_of_a_word_in_the_reason() -> None:
    content = json.dumps({"score": 3, "reason": 'the "score": 9 it wants, \\"score\\": 10'})
    assert content[read_reply(content).score_at :].startswith("3")
    content = '{"reason": "score", "score":  4}'
    assert content[read_reply(content).score_at] == "4"


def test_odds_are_those_of_the_scores_alone() -> None:
    odds = score_odds(*reply_of(token("8", s8=0.6, s7=0.2, sx=0.2)))
    assert odds == {8: pytest.approx(0.75), 7: pytest.approx(0.25)}


def test_a_ten_of_one_token_and_one_of_two_weigh_the_same() -> None:
    assert score_odds(*reply_of(token("10", s10=0.5, s9=0.5))) == {10: pytest.approx(0.5), 9: pytest.approx(0.5)}
    split = score_odds(*reply_of(token("1", s1=0.5, s9=0.5), token("0", s0=0.8, sx=0.2)))
    assert split == {10: pytest.approx(0.4), 1: pytest.approx(0.1), 9: pytest.approx(0.5)}


def test_a_one_that_may_be_the_beginning_of_a_ten_gives_no_odds() -> None:
    assert score_odds(*reply_of(token("9", s9=0.6, s1=0.4))) is None
    assert score_odds(*reply_of(token("9", s9=0.6, s1=0.2, s10=0.2))) is not None


def test_without_probabilities_of_the_score_there_are_no_odds() -> None:
    reply, content, tokens = reply_of(token("8", s8=0.4, sx=0.1))
    assert score_odds(reply, content, tokens) is None
    assert score_odds(reply, content, []) is None
    assert score_odds(reply, content, [token(content)]) is None


def test_half_characters_and_stop_tokens_around_the_score_do_no_harm() -> None:
    content = '{"reason": "é", "score": 8}'
    tokens = [
        token('{"reason": "'),
        token("\ufffd"),
        token("\ufffd"),
        token('", "score":'),
        token(" 8"),
        token("}<end>"),
    ]
    assert score_odds(read_reply(content), content, tokens) == {8: 1.0}
