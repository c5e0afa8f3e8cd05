import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.seeds import seed_for

PART = st.one_of(st.none(), st.integers(), st.text(max_size=8))


@given(st.lists(PART, max_size=4))
def test_a_seed_has_63_bits_and_does_not_change(parts: list[str | int | None]) -> None:
    assert 0 <= seed_for(*parts) < 2**63
    assert seed_for(*parts) == seed_for(*parts)


@given(st.lists(PART, max_size=4), st.lists(PART, max_size=4))
def test_other_parts_give_another_seed(
    one: list[str | int | None], other: list[str | int | None]
) -> None:
    assert (seed_for(*one) == seed_for(*other)) == (one == other)


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    # printf '[42,"noise","clip-1",0]' | sha256sum: the first 16 digits, halved.
    assert seed_for(42, "noise", "clip-1", 0) == 1723665112905893578


def test_a_part_without_canonical_text_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        seed_for(42, 0.5)  # type: ignore[arg-type]
