import contextlib
import datetime
import json
import threading
from pathlib import Path

import pytest

from tersely.errors import IdentityInvalid, IdentityMissing, TokenRefused
from tersely.identity.tokens import JoinToken, TokenBook

NOW = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC)
FINGERPRINT = bytes(range(32))


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(tmp_path: Path, clock: Clock) -> TokenBook:
    return TokenBook(tmp_path, clock)


def use(book: TokenBook, token: JoinToken) -> tuple[str, str, str]:
    return book.use(token.secret, lambda role: f"{role}-mini-1")


def test_a_token_says_whom_to_trust_and_comes_back_from_its_text(book: TokenBook) -> None:
    token = book.create(FINGERPRINT, "rollout")
    assert token.text.startswith("tersely-rollout-")
    assert JoinToken.parse(f" {token.text}\n") == token
    assert token.fingerprint == FINGERPRINT
    assert token.text not in repr(token)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tersely-",
        "tersely-rollout-",
        "x" * 100_000,
        "rollout-" + "A" * 86,
        "tersely-king-" + "A" * 86,
        "tersely-rollout-" + "A" * 85,
        "tersely-rollout-" + "A" * 87,
        "tersely-rollout-" + "?" * 86,
    ],
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        JoinToken.parse(text)
    assert "AAAA" not in str(caught.value)


def test_a_token_works_once(book: TokenBook) -> None:
    token = book.create(FINGERPRINT, "scorer")
    assert use(book, token) == (token.token_id, "scorer", "scorer-mini-1")
    with pytest.raises(TokenRefused, match="is used"):
        use(book, token)
    assert book.entries()[token.token_id]["node"] == "scorer-mini-1"


def test_of_many_at_once_one_gets_in(book: TokenBook, tmp_path: Path, clock: Clock) -> None:
    token = book.create(FINGERPRINT, "rollout")
    won, start = [], threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        with contextlib.suppress(TokenRefused):
            TokenBook(tmp_path, clock).use(token.secret, lambda role: f"n{number}")
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_token_lives_for_fifteen_minutes(book: TokenBook, clock: Clock) -> None:
    early, late = book.create(FINGERPRINT, "rollout"), book.create(FINGERPRINT, "rollout")
    clock.now = NOW + datetime.timedelta(minutes=14, seconds=59)
    assert use(book, early)
    clock.now = NOW + datetime.timedelta(minutes=15)
    with pytest.raises(TokenRefused, match="is expired"):
        use(book, late)


def test_a_revoked_token_is_of_no_use(book: TokenBook) -> None:
    token = book.create(FINGERPRINT, "rollout")
    assert book.revoke(token.token_id)["node"] == ""
    with pytest.raises(TokenRefused, match="is revoked"):
        use(book, token)
    with pytest.raises(IdentityMissing):
        book.revoke("0123456789ab")


def test_a_guess_is_refused_also_one_that_has_the_right_id(book: TokenBook) -> None:
    token = book.create(FINGERPRINT, "rollout")
    for guess in (b"", bytes(32), token.secret[:-1], token.secret + b"x", token.token_id.encode()):
        with pytest.raises(TokenRefused, match="not known"):
            book.use(guess, lambda role: "n")
    assert use(book, token)


def test_what_is_stored_and_listed_does_not_let_anybody_in(book: TokenBook, tmp_path: Path) -> None:
    token = book.create(FINGERPRINT, "rollout")
    stored = (tmp_path / "tokens.json").read_bytes()
    listed = json.dumps(book.entries())
    for secret in (token.text, token.text[-43:], token.secret.hex()):
        assert secret.encode() not in stored
        assert secret not in listed
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert "hash" not in listed


def test_old_tokens_are_forgotten_after_a_week(book: TokenBook, clock: Clock) -> None:
    old = book.create(FINGERPRINT, "rollout")
    clock.now = NOW + datetime.timedelta(days=8)
    book.create(FINGERPRINT, "rollout")
    assert old.token_id not in book.entries()


@pytest.mark.parametrize("role", ["trainer", "king", ""])
def test_no_token_makes_a_trainer(book: TokenBook, role: str) -> None:
    with pytest.raises(IdentityInvalid):
        book.create(FINGERPRINT, role)


def test_a_damaged_book_is_told_and_not_written_over(book: TokenBook, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(IdentityInvalid, match="damaged"):
        book.create(FINGERPRINT, "rollout")
    assert (tmp_path / "tokens.json").read_text() == "{"
