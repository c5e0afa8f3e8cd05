import shutil
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from hvkf.errors import BadInput, CorruptData
from hvkf.stages.reference_cache import (
    CacheFolder,
    RecordFault,
    Repeats,
    Taken,
    find_folders,
    read_records,
)
from tests.reference_caches import (
    BY_THE_REFERENCE,
    LATENT_COLUMNS,
    Record,
    latent_record,
    sampled_again,
    shard_of,
    video_record,
    write_latents_cache,
    write_mds,
    write_videos_cache,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def records_of(folder: Path) -> list[Taken]:
    """Read all records of a folder; none may be refused."""
    (found,) = find_folders([str(folder)])
    taken = list(read_records(found))
    assert not [record for record in taken if isinstance(record, RecordFault)]
    return [record for record in taken if isinstance(record, Taken)]


def refusals_of(folder: Path) -> list[RecordFault]:
    (found,) = find_folders([str(folder)])
    return [record for record in read_records(found) if isinstance(record, RecordFault)]


def test_the_references_own_cache_is_read() -> None:
    folders = find_folders([str(BY_THE_REFERENCE)])
    assert [(folder.name, folder.bucket, folder.num_records) for folder in folders] == [
        ("32x32x5_00", "32x32x5", 2),
        ("32x32x5_01", "32x32x5", 2),
    ]
    (first, _) = records_of(BY_THE_REFERENCE / "32x32x5_00")
    assert first.columns["latents"].shape == (16, 2, 4, 4)
    assert first.columns["prompt_embeds"].shape == (256, 32)
    assert first.columns["prompt_attention_mask"].dtype == np.uint8
    assert first.origin == "32x32x5_00 record 0"


def test_folders_are_found_by_themselves_or_in_their_parent(tmp_path: Path) -> None:
    for name in ("32x32x9_00", "32x32x5_01", "32x32x5_00"):
        write_latents_cache(tmp_path / "all" / name, [latent_record(1, name.partition("_")[0])])
    write_mds(tmp_path / "all" / "48x32x5_00", LATENT_COLUMNS, [])
    names = ["32x32x5_00", "32x32x5_01", "32x32x9_00"]
    assert [folder.name for folder in find_folders([str(tmp_path / "all")])] == names
    chosen = [str(tmp_path / "all" / names[0]), str(tmp_path / "all" / names[2]) + "/"]
    assert [folder.name for folder in find_folders(chosen)] == [names[0], names[2]]


def test_equal_content_has_one_key_wherever_it_lies(tmp_path: Path) -> None:
    records = [latent_record(1), latent_record(2), latent_record(1)]
    write_latents_cache(tmp_path / "32x32x5_00", records)
    write_latents_cache(tmp_path / "32x32x5_01", records[:1])
    first, second, third = records_of(tmp_path / "32x32x5_00")
    (elsewhere,) = records_of(tmp_path / "32x32x5_01")
    assert first.key == third.key == elsewhere.key != second.key


def test_a_videos_sides_are_put_right(tmp_path: Path) -> None:
    write_videos_cache(tmp_path / "48x32x5", [video_record(3, "48x32x5")])
    (taken,) = records_of(tmp_path / "48x32x5")
    assert taken.original_size == (640, 360)
    assert str(taken.bucket) == "48x32x5"
    assert taken.source == "00003.mp4"
    assert taken.caption == "The video shows a square, take 3."


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    shard = shard_of(folder)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptData, match=r"32x32x5_00/shard\.00000\.mds has \d+ bytes where its"):
        find_folders([str(folder)])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    shard_of(folder).unlink()
    with pytest.raises(CorruptData, match=r"shard\.00000\.mds is missing"):
        find_folders([str(folder)])


def flip_byte(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0xFF
    file.write_bytes(bytes(data))


def test_a_flipped_byte_is_found_where_the_cache_has_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "32x32x5_00"
    with MDSWriter(out=str(folder), columns=LATENT_COLUMNS, hashes=["sha1"]) as writer:
        writer.write(latent_record(1))
    flip_byte(shard_of(folder), -3)
    (found,) = find_folders([str(folder)])
    with pytest.raises(CorruptData, match=r"shard\.00000\.mds has another sha1"):
        list(read_records(found))


@pytest.mark.parametrize("position", [0, 4, 20])
def test_damage_to_the_frame_of_a_compressed_shard_is_found_without_hashes(
    tmp_path: Path, position: int
) -> None:
    folder = tmp_path / "32x32x5_00"
    shutil.copytree(BY_THE_REFERENCE / "32x32x5_00", folder)
    flip_byte(shard_of(folder), position)
    (found,) = find_folders([str(folder)])
    with pytest.raises(CorruptData, match=r"shard\.00000\.mds\.zstd cannot be unpacked"):
        list(read_records(found))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"latents": np.full((16, 2, 4, 4), np.nan, np.float32)}, "not-finite"),
        ({"pooled_prompt_embeds": np.full(24, np.inf, np.float32)}, "not-finite"),
        ({"latents": np.zeros((16, 2, 4, 4), np.int32)}, "wrong-type"),
        ({"latents": np.zeros((16, 2, 4, 6), np.float32)}, "wrong-shape"),
        (dict.fromkeys(("latents", "latents_cond"), np.zeros(16, np.float32)), "wrong-shape"),
        ({"prompt_attention_mask": np.ones(9, np.float32)}, "wrong-shape"),
    ],
)
def test_a_record_that_cannot_train_is_refused_and_the_next_is_read(
    tmp_path: Path, change: Record, code: str
) -> None:
    folder = write_latents_cache(
        tmp_path / "32x32x5_00", [{**latent_record(1), **change}, latent_record(2)]
    )
    (refusal,) = refusals_of(folder)
    assert refusal.code == code
    assert str(refusal).startswith("32x32x5_00 record 0: ")


def test_clips_that_the_reference_did_not_scale_are_refused(tmp_path: Path) -> None:
    videos = write_videos_cache(tmp_path / "960x544x5", [video_record(1, "960x2x5")])
    latents = write_latents_cache(tmp_path / "960x544x5_00", [latent_record(1, "960x8x5")])
    assert "960x2x5 in a folder for 960x544x5" in str(refusals_of(videos)[0])
    assert "960x8x5 in a folder for 960x544x5" in str(refusals_of(latents)[0])


def test_a_folder_of_another_name_takes_its_buckets_from_the_arrays(tmp_path: Path) -> None:
    folder = write_latents_cache(
        tmp_path / "mine", [latent_record(1, "48x32x9"), latent_record(2, "32x32x5")]
    )
    assert [str(record.bucket) for record in records_of(folder)] == ["48x32x9", "32x32x5"]


def test_folders_that_are_no_such_caches_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty nor a folder directly in it has an index\.json"):
        find_folders([str(tmp_path / "empty")])
    other = write_mds(tmp_path / "other", {"text": "str"}, [{"text": "a"}])
    with pytest.raises(BadInput, match="have the columns text"):
        find_folders([str(other)])
    write_mds(tmp_path / "none", LATENT_COLUMNS, [])
    with pytest.raises(BadInput, match="not one record"):
        find_folders([str(tmp_path / "none")])
    write_latents_cache(tmp_path / "mixed" / "32x32x5_00", [latent_record(1)])
    write_videos_cache(tmp_path / "mixed" / "32x32x5", [video_record(1)])
    with pytest.raises(BadInput, match="both videos and latents"):
        find_folders([str(tmp_path / "mixed")])


def taken(record: Record, origin: str, folder: Path) -> Taken:
    write_latents_cache(folder / origin, [record])
    (found,) = read_records(CacheFolder(str(folder / origin), "latents", None, 1))
    assert isinstance(found, Taken)
    return found


def test_a_padding_repeat_is_told_from_another_video_of_the_same_caption(tmp_path: Path) -> None:
    first, other = latent_record(1, text=7), latent_record(2, text=7)
    repeats = Repeats(same_within=0.1)
    assert repeats.origin_of(taken(first, "a", tmp_path)) is None
    assert repeats.origin_of(taken(other, "b", tmp_path)) is None
    assert repeats.origin_of(taken(sampled_again(first), "c", tmp_path)) == "a record 0"
    assert repeats.origin_of(taken(first, "d", tmp_path)) == "a record 0"


def test_close_latents_of_another_caption_are_no_repeat(tmp_path: Path) -> None:
    first = latent_record(1, text=7)
    renamed = {**sampled_again(first), "prompt_embeds": latent_record(9)["prompt_embeds"]}
    repeats = Repeats(same_within=0.1)
    assert repeats.origin_of(taken(first, "a", tmp_path)) is None
    assert repeats.origin_of(taken(renamed, "b", tmp_path)) is None


def test_a_share_of_zero_keeps_all_but_equal_bits(tmp_path: Path) -> None:
    first = latent_record(1)
    repeats = Repeats(same_within=0)
    assert repeats.origin_of(taken(first, "a", tmp_path)) is None
    assert repeats.origin_of(taken(sampled_again(first), "b", tmp_path)) is None
    assert repeats.origin_of(taken(first, "c", tmp_path)) == "a record 0"
