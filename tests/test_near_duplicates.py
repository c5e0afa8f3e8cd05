"""Videos that show the same are told from others, and stay on one side whenever they come."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.demo import clips_folder
from hvkf.media.writing import write_mp4
from hvkf.near_duplicates import HASHED_AT, groups, perceptual_hash
from hvkf.settings.data import IngestConfig
from hvkf.stages.ingest_splits import HOLDOUT, TRAIN, decide_splits
from hvkf.video import decode_frames, probe

NUM_DIGITS = 16 * len(HASHED_AT)
CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


def hash_of(file: Path) -> str:
    info = probe(file)
    return perceptual_hash(file, info.num_frames, info.reading)


@pytest.fixture(scope="module")
def originals() -> dict[str, str]:
    return {name: hash_of(clips_folder() / name) for name in CLIPS}


def test_a_smaller_and_worse_copy_shows_the_same_and_another_video_does_not(
    tmp_path: Path, originals: dict[str, str]
) -> None:
    source = clips_folder() / "carphone_pristine.mp4"
    num_frames = probe(source).num_frames
    # H.264 needs even sides, and the clip is shown 193 pixels wide.
    half = np.stack([frame[::2, :192:2] for _, frame in decode_frames(source, range(num_frames))])
    write_mp4(tmp_path / "copy.mp4", half, crf=35)
    found = groups({**originals, "copy": hash_of(tmp_path / "copy.mp4")}, {"copy"})
    assert sorted(found) == [
        ["bigbuckbunny.mp4"],
        ["bikes.mp4"],
        ["carphone_pristine.mp4", "copy"],
    ]


def flipped(digits: str, num_bits: int) -> str:
    value = int(digits, 16)
    for bit in range(num_bits):
        value ^= 1 << (7 * bit % (4 * len(digits)))
    return f"{value:0{len(digits)}x}"


def test_what_is_near_to_a_near_one_is_in_the_group_and_no_hash_is_alone() -> None:
    first = "0f" * (NUM_DIGITS // 2)
    hashes = {"a": first, "b": flipped(first, 15), "c": flipped(first, 30), "d": "", "e": ""}
    assert groups(hashes, {"a", "c"}) == [["a", "b", "c"], ["d"], ["e"]]
    assert groups(hashes, {"a"}) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert groups(hashes, set()) == [["a"], ["b"], ["c"], ["d"], ["e"]]


SOURCES = st.dictionaries(
    st.integers(0, 10**6).map(str), st.integers(0, 5).map(str), min_size=1, max_size=20
)


def hashes_of(sources: dict[str, str]) -> dict[str, str]:
    """Give each look of a video a hash far from the others'."""
    draws = {
        look: np.random.default_rng(int(look)).bytes(NUM_DIGITS // 2).hex() for look in "012345"
    }
    return {source: draws[look] for source, look in sources.items()}


@given(SOURCES, st.floats(0, 0.9), st.integers(0, 4), st.data())
def test_a_side_never_changes_and_equal_looks_share_one(
    sources: dict[str, str], fraction: float, min_holdout: int, data: st.DataObject
) -> None:
    config = IngestConfig(holdout_fraction=fraction, min_holdout=min_holdout)
    first = data.draw(st.sets(st.sampled_from(sorted(sources))))
    early = {source: look for source, look in hashes_of(sources).items() if source in first}
    before, between = decide_splits(early, {}, config)
    assert not between
    after, between = decide_splits(hashes_of(sources), before, config)
    assert not between
    assert after.items() >= before.items()
    assert after.keys() == sources.keys()
    sides = {look: {after[s] for s in sources if sources[s] == look} for look in sources.values()}
    assert all(len(of_look) == 1 for of_look in sides.values())


def test_what_shows_the_same_as_both_sides_is_left_out() -> None:
    first = "0f" * (NUM_DIGITS // 2)
    known = {"a": TRAIN, "c": HOLDOUT}
    hashes = {"a": first, "b": flipped(first, 15), "c": flipped(first, 30)}
    splits, between = decide_splits(hashes, known, IngestConfig())
    assert between == {"b"}
    assert splits == known
