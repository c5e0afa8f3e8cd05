"""Strategies that change valid inputs a little: what a parser must expect, and rarely is shown."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = st.sampled_from(
    [
        *("", " ", "..", "../x", "/etc/passwd", "~bob/x", "~", "a/b", "a.mp4/x.mp4", "C:\\x", "\\"),
        *("x" * 300, "\0", "a\0b", "\ud800", "\ufeff", "\u202e", "é", "e\u0301", "NaN", "1e400"),
        *("9" * 5000, "-0", "true", "null", "=1+1", "<script>", "[/step-1]", "%s%n", "{0}", "\r\n"),
    ]
)
ODD_NUMBERS = [None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**400, -(10**30)]
ODD_VALUES = st.one_of(
    ODD_TEXTS,
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from([0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from([[], {}, [[]], [None], {"a": {}}, [[0, "a.png"]], {"": ""}, list(range(100))]),
    st.builds(lambda depth: _nested(depth), st.sampled_from([10, 200, 900])),
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def places_in(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value inside JSON data, down to eight levels."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, dict):
            items: Any = list(inner.items())
        else:
            items = list(enumerate(inner)) if isinstance(inner, list) else []
        for key, child in items:
            yield (*path, key)
            if len(path) < 8:
                waiting.append(((*path, key), child))


@st.composite
def mutated_json(draw: st.DrawFn, valid: Any) -> Any:
    """Draw a copy of JSON data with one to three values replaced, removed, renamed or repeated."""
    changed = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(changed))
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        holder = changed
        for parent in parents:
            holder = holder[parent]
        _change(draw, holder, key)
    return changed


def _change(draw: st.DrawFn, holder: Any, key: Any) -> None:
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat"]))
    if how == "replace":
        holder[key] = copy.deepcopy(draw(ODD_VALUES))
    elif how == "remove":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(["", "x", " id", "ID", "x" * 300, "\ud800", "\0"]))] = (
            holder.pop(key)
        )
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))


MAX_CHANGES = 4
# Quotes, separators and line ends, odd Unicode, brackets, numbers and cells without end; and what
# length fields hold where they lie: none, one, the largest of each size.
ODD_BYTES = [
    *(b'"', b"'", b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\x1a", b"sep=;\n"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xe2\x80\xa8", b"\\ud800"),
    *(b"{", b"}", b"[", b"]", b"[" * 3000, b"NaN", b"9" * 5000, b"1e999999999", b"x" * 3000),
    *(b"\0", b"\x01", b"\x7f", b"\x80", b"\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff" * 8),
]


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Draw valid bytes with one to four places flipped, cut, replaced, inserted or repeated."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, MAX_CHANGES))):
        place = draw(st.integers(0, len(data)))
        end = min(len(data), place + draw(st.integers(1, 64)))
        change = draw(st.sampled_from(["flip", "cut", "field", "insert", "odd", "repeat", "end"]))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[place:end]
        elif change == "field":
            field = draw(st.sampled_from(ODD_BYTES))
            data[place : place + len(field)] = field
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif change == "odd":
            data[place:place] = draw(st.sampled_from(ODD_BYTES))
        elif change == "repeat":
            data[place:place] = data[place:end] * draw(st.integers(1, 64))
        elif change == "end":
            del data[place:]
    return bytes(data)


def mutated_bytes(valid: bytes) -> st.SearchStrategy[bytes]:
    """Draw changed copies of some bytes."""
    return mutated(st.just(valid))
