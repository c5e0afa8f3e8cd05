import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.captions import STOCK_OPENINGS, clean_caption

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


def test_cleaning_captions_does_not_load_torch() -> None:
    script = "import sys, hvkf.captions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
