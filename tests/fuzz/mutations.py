"""Strategies that damage valid input: bits flipped, parts cut out, repeated or replaced."""

from hypothesis import strategies as st

MAX_CHANGES = 4
# What length fields hold where they lie: none, one, the largest of each size.
ODD_FIELDS = (
    b"\0",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
)


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Damage some valid bytes in one to four places."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, MAX_CHANGES))):
        place = draw(st.integers(0, len(data)))
        end = min(len(data), place + draw(st.integers(1, 16)))
        change = draw(st.sampled_from(["flip", "cut", "field", "insert", "repeat", "end"]))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[place:end]
        elif change == "field":
            field = draw(st.sampled_from(ODD_FIELDS))
            data[place : place + len(field)] = field
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif change == "repeat":
            data[place:place] = data[place:end] * draw(st.integers(1, 64))
        elif change == "end":
            del data[place:]
    return bytes(data)
