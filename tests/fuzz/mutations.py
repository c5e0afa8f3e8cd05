"""Strategies that change valid inputs a little: what a parser must expect, and rarely is shown."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = st.sampled_from(
    [
        *("", " ", "..", "../x", "/etc/passwd", "~bob/x", "~", "a/b", "a.mp4/x.mp4", "C:\\x", "\\"),
        *("x" * 300, "\0", "a\0b", "\ud800", "\ufeff", "\u202e", "é", "e\u0301", "NaN", "1e400"),
        *("9" * 5000, "-0", "true", "null", "=1+1", "<script>", "[/step-1]", "%s%n", "{0}", "\r\n"),
    ]
)
ODD_VALUES = st.one_of(
    ODD_TEXTS,
    st.sampled_from([None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**400, -(10**30)]),
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


Edit = Callable[[bytes], bytes]
INSERTED = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from(
        [
            *(
                b'"',
                b"'",
                b",",
                b";",
                b"\t",
                b"|",
                b"\n",
                b"\r",
                b"\r\n",
                b"\0",
                b"\xff",
                b"\xfe\xff",
            ),
            *(
                b"\xef\xbb\xbf",
                b"\xff\xfe",
                b"{",
                b"}",
                b"[",
                b"]",
                b"[" * 3000,
                b"\\ud800",
                b"NaN",
            ),
            *(b"9" * 5000, b"1e999999999", b"sep=;\n", b"\x1a", b"\xe2\x80\xa8", b"x" * 3000),
        ]
    ),
)


@st.composite
def mutated_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a copy of some bytes with one to four of them flipped, cut, inserted or repeated."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "insert", "cut", "remove", "repeat"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            data[at:at] = draw(INSERTED)
        elif how == "cut" and draw(st.booleans()):
            del data[at:]
        elif how == "remove":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)
