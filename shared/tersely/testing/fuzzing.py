"""Fuzz tests: damaged and made-up input for whatever reads what others wrote. Needs hypothesis.

A reader may answer an input or refuse it with a `TerselyError` that has a way out. Anything else that it raises is a
crash. How many inputs a test tries is set from outside, so that the same tests run in seconds and for an hour.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tersely.errors import TerselyError

INPUTS_ENV = "TERSELY_FUZZ_INPUTS"
"""Inputs that each test tries; `scripts/fuzz.py` sets it."""
DEFAULT_INPUTS = 120
SECONDS_PER_INPUT = 20
"""An input that takes longer counts as a hang."""

T = TypeVar("T")
tried: dict[str, int] = {}
"""Inputs tried so far by test."""


def fuzzed(share: float = 1.0, /, **inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Makes a test that tries many inputs.

    Args:
        share: Of the number that others try; less for what is slow.
        inputs: Strategy per argument of the test.
    """

    def decorate(test: Callable[..., None]) -> Any:
        tried.setdefault(test.__name__, 0)

        @functools.wraps(test)  # with the examples that were given below
        def once(*args: Any, **drawn: Any) -> None:
            tried[test.__name__] += 1
            test(*args, **drawn)

        most = max(10, int(int(os.environ.get(INPUTS_ENV, DEFAULT_INPUTS)) * share))
        limited = settings(
            max_examples=most,
            deadline=SECONDS_PER_INPUT * 1000,
            derandomize=INPUTS_ENV not in os.environ,
            database=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        return limited(given(**inputs)(once))

    return decorate


def refused(read: Callable[[], T]) -> T | TerselyError:
    """What a reader answers, or how it refuses.

    Raises:
        AssertionError: It refuses without saying what to do.
    """
    try:
        return read()
    except TerselyError as error:
        refusal = error
    if not refusal.message or not refusal.way_out:
        raise AssertionError(f"{type(refusal).__name__} says nothing or has no way out: {refusal}")
    return refusal


def mutate(data: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Applies edits: each (set, cut, insert, repeat or drop), at a place taken modulo the length, with bytes."""
    out = bytearray(data)
    for kind, place, piece in edits:
        at = place % (len(out) + 1)
        if kind == "set":
            out[at : at + len(piece)] = piece
        elif kind == "cut":
            del out[at:]
        elif kind == "insert":
            out[at:at] = piece
        elif kind == "repeat":
            out[at:at] = out[at : at + 64]
        else:
            del out[at : at + max(1, len(piece))]
    return bytes(out)


_PIECES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        [b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"[" * 400, b"\n", b'"', b"9" * 5000, b"\xed\xa0\x80"]
    ),
)
_EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "set", "cut", "insert", "repeat", "drop"]), st.integers(0, 1 << 20), _PIECES),
    max_size=5,
)


def damaged(*whole: bytes) -> st.SearchStrategy[bytes]:
    """Whole inputs with a few edits, and now and then plain noise."""
    return st.one_of(
        st.builds(mutate, st.sampled_from(whole), _EDITS),
        st.builds(mutate, st.sampled_from(whole), _EDITS),
        st.binary(max_size=200),
    )


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1 << 31, 1 << 63, 1 << 64, 10**400, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "\x00", "../../etc/passwd", "/etc/passwd", "os.system", "\ud800", "~nobody-here/x"]),
)


def json_values(*keys: str) -> st.SearchStrategy[Any]:
    """Any JSON value; objects have these keys more often than others."""
    names = (
        st.one_of(st.sampled_from(keys), st.sampled_from(keys), st.text(max_size=5)) if keys else st.text(max_size=5)
    )
    return st.recursive(
        _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5), max_leaves=12
    )


def json_objects(example: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Copies of an object in which some values, at any depth, are replaced by others, and some left out."""
    places = list(_places(example))
    keys = sorted({str(place[-1]) for place in places})
    change = st.tuples(st.sampled_from(places), st.booleans(), json_values(*keys))
    return st.lists(change, max_size=3).map(lambda changes: _changed(example, changes))


def deep(depth: int) -> bytes:
    """JSON that is nested so deep that a recursive reader runs out of stack."""
    return b'{"a":' * depth + b"1" + b"}" * depth


def dumped(value: Any) -> bytes:
    """A value as JSON, with whatever JSON does not know."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any, above: tuple[str | int, ...] = ()) -> Any:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inside:
        yield (*above, key)
        yield from _places(below, (*above, key))


def _changed(example: dict[str, Any], changes: Sequence[tuple[tuple[str | int, ...], bool, Any]]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(example))
    for (*above, last), drop, value in changes:
        node: Any = copy
        try:
            for key in above:
                node = node[key]
            if drop:
                del node[last]
            else:
                node[last] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return copy
