import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.captions import STOCK_OPENINGS, batch_by_length, clean_caption

GOLDEN = json.loads((Path(__file__).parent / "golden/captions.json").read_text(encoding="utf-8"))


def test_the_stock_openings_are_the_references_in_its_order() -> None:
    assert list(STOCK_OPENINGS) == GOLDEN["phrases"]


@pytest.mark.parametrize(("caption", "cleaned"), GOLDEN["cases"])
def test_captions_lose_their_stock_openings_as_in_the_reference(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


@given(st.text(), st.sampled_from(STOCK_OPENINGS))
def test_what_is_left_is_the_end_of_the_caption_without_white_space(
    text: str, opening: str
) -> None:
    cleaned = clean_caption(f"{opening} {text}")
    assert cleaned == cleaned.strip()
    assert text.strip().endswith(cleaned)


@given(st.dictionaries(st.text(), st.integers(1, 256)), st.integers(1, 9), st.randoms())
def test_each_caption_is_in_one_batch_of_like_lengths_whatever_the_order(
    lengths: dict[str, int], size: int, random: Random
) -> None:
    found = batch_by_length(lengths, size)
    batches = list(dict.fromkeys(found.values()))
    assert sorted(caption for batch in batches for caption in batch) == sorted(lengths)
    assert all(caption in batch for caption, batch in found.items())
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(1 <= len(batch) <= size for batch in batches)
    in_order = [lengths[caption] for batch in batches for caption in batch]
    assert in_order == sorted(in_order)
    shuffled = random.sample(list(lengths.items()), len(lengths))
    assert batch_by_length(dict(shuffled), size) == found


def test_cleaning_captions_does_not_load_torch() -> None:
    script = "import sys, hvkf.captions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
