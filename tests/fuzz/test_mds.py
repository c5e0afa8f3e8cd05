"""MDS folders of others: mutated indexes and shards, through every reader of them."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf.config import Config
from hvkf.mds_index import MdsShard, parse_index
from hvkf.shards import MdsFolder, Segment
from hvkf.stages.reference_cache import find_folders, read_records
from hvkf.storage import FolderStore
from hvkf.training.dataset import stored_latents
from hvkf.training.items import find_sources, read_items
from tests.fuzz.bounds import fuzzed, in_bounds
from tests.fuzz.mutations import mutated_bytes, mutated_json
from tests.hostile_mds import as_segment
from tests.reference_caches import (
    BY_THE_REFERENCE,
    latent_record,
    shard_of,
    video_record,
    write_latents_cache,
    write_videos_cache,
)
from tests.training.latents import train_config

CACHED = BY_THE_REFERENCE / "32x32x5_00"
INDEX = json.loads((CACHED / "index.json").read_bytes())


def mutated_index() -> st.SearchStrategy[bytes]:
    """An index that is wrong in a field or two, or in its bytes."""
    as_json = mutated_json(INDEX).map(lambda index: json.dumps(index).encode())
    return st.one_of(as_json, mutated_bytes((CACHED / "index.json").read_bytes()))


@contextmanager
def cache_with(
    index: bytes | None = None, shard: bytes | None = None, of: Path = CACHED
) -> Iterator[Path]:
    """A copy of a cache with another index or shard."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "32x32x5_00"
        shutil.copytree(of, folder)
        if shard is not None:
            shard_of(folder).write_bytes(shard)
        if index is not None:
            (folder / "index.json").write_bytes(index)
        yield folder


def read_all(folder: Path) -> None:
    """Read a folder as `hvkf import-cache` does, and as training does."""
    with in_bounds():
        for found in find_folders([str(folder)]):
            for _ in read_records(found):
                pass
    with in_bounds():
        config: Config = train_config(folder / "w", data={"local": [str(folder)]})
        store = FolderStore(folder / "w")
        items = read_items(store, find_sources(config, store), config.data)
        shards = MdsFolder(FolderStore(folder), folder / "shards")
        for item in items.train:
            stored_latents(shards[item.position], item.key, config.data)


def read_segment(folder: Path) -> None:
    store = FolderStore(folder.parent / "w")
    record = as_segment(store, folder, num_items=2)
    with in_bounds():
        segment = Segment(store, record, folder.parent / "shards")
        for position in range(len(segment)):
            segment[position]
            segment.item_sha256(position)


@given(mutated_index())
@example(b"[" * 100_000)
@example(json.dumps({**INDEX, "shards": [{}]}).encode())
@example(json.dumps({**INDEX, "shards": INDEX["shards"] * 100}).encode())
@fuzzed(2400)
def test_any_index_is_read_or_refused(index: bytes) -> None:
    with in_bounds():
        parse_index(index, "index.json")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@given(mutated_index())
@fuzzed(200)
def test_a_folder_of_any_index_is_read_or_refused(index: bytes) -> None:
    with cache_with(index) as folder:
        read_all(folder)
        read_segment(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Caches without compression: a changed byte of their shards reaches the decoders."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        "latents": write_latents_cache(folder / "a", [latent_record(1), latent_record(2)]),
        "videos": write_videos_cache(folder / "b", [video_record(1), video_record(2)]),
    }


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Overwrite a few bytes near a shard's head, where sizes and types stand, or anywhere."""
    places = draw(
        st.lists(
            st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)),
            min_size=1,
            max_size=4,
        )
    )
    near = draw(st.booleans())

    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        for place, new in places:
            at = place % (1200 if near else len(changed))
            changed[at : at + len(new)] = new[: len(changed) - at]
        return bytes(changed[: len(data)])

    return damage


@given(damages(), st.sampled_from(["latents", "videos"]))
@fuzzed(320)
def test_any_shard_is_read_or_refused(plain: dict[str, Path], damage: Damage, kind: str) -> None:
    of = plain[kind]
    with cache_with(shard=damage(shard_of(of).read_bytes()), of=of) as folder:
        if kind == "videos":
            with in_bounds():
                for found in find_folders([str(folder)]):
                    list(read_records(found))
        else:
            read_all(folder)
        read_segment(folder)


@given(mutated_bytes(shard_of(CACHED).read_bytes()))
@fuzzed(120)
def test_any_compressed_shard_is_read_or_refused(shard: bytes) -> None:
    index = copy.deepcopy(INDEX)
    index["shards"][0]["zip_data"]["bytes"] = len(shard)
    with cache_with(json.dumps(index).encode(), shard) as folder:
        read_all(folder)


def test_the_fuzzed_caches_are_read_when_nothing_is_changed(plain: dict[str, Path]) -> None:
    shards: tuple[MdsShard, ...] = parse_index((CACHED / "index.json").read_bytes(), "x")
    assert len(shards) == 1
    for of in (CACHED, plain["latents"], plain["videos"]):
        with cache_with(of=of) as folder:
            (found,) = find_folders([str(folder)])
            assert len(list(read_records(found))) == 2
