"""A folder of MDS shards runs no code, and leads to no file outside of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstd  # type: ignore[import-untyped]  # streaming's own

from hvkf.errors import BadInput, CorruptData, HvkfError
from hvkf.shards import MdsFolder, Segment
from hvkf.storage import FolderStore
from hvkf.training.items import find_sources, read_items
from tests.commands import run_command
from tests.hostile_mds import Bomb, as_segment, change_index, write_bomb
from tests.reference_caches import latent_record, shard_of, write_latents_cache
from tests.training.latents import train_config
from tests.workspaces import TINY


class FarFolder(FolderStore):
    """A folder whose files lie on another machine, as behind s3://."""

    def local_path(self, path: str) -> Path | None:
        return None


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path: Path) -> None:
    """Without this, the tests below would show nothing."""
    import pickle

    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("column", ["prompt_embeds", "comment"])
def test_importing_a_cache_runs_none_of_its_code(tmp_path: Path, column: str) -> None:
    folder = write_bomb(tmp_path / "lat" / "32x32x5_00", tmp_path / "ran", column)
    with pytest.raises(BadInput, match=rf"column '{column}' is stored as 'pkl'; allowed are str"):
        run_command(
            *("import-cache", str(folder), "--dataset", "old"),
            *("--workspace", str(tmp_path / "workspace")),
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("setting", ["local", "remote"])
def test_training_on_a_cache_runs_none_of_its_code(tmp_path: Path, setting: str) -> None:
    folder = write_bomb(tmp_path / "32x32x5_00", tmp_path / "ran")
    with pytest.raises(BadInput, match=r"index\.json .* column 'prompt_embeds' is stored as 'pkl'"):
        run_command(
            *("train", "--workspace", str(tmp_path / "workspace")),
            f"--model.pretrained_model_name_or_path={TINY}",
            f"--data.{setting}=[{folder}]",
        )
    assert not (tmp_path / "ran").exists()


def test_a_worker_whose_index_changed_after_planning_runs_none_of_its_code(tmp_path: Path) -> None:
    folder = write_bomb(tmp_path / "32x32x5_00", tmp_path / "ran")
    with pytest.raises(BadInput, match="'pkl'"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")
    assert not (tmp_path / "ran").exists()


def test_a_segment_runs_no_code_even_when_its_ledger_record_fits(tmp_path: Path) -> None:
    folder = write_bomb(tmp_path / "mds", tmp_path / "ran")
    store = FolderStore(tmp_path / "workspace")
    with pytest.raises(BadInput, match="'pkl'"):
        Segment(store, as_segment(store, folder), tmp_path / "shards")
    assert not (tmp_path / "ran").exists()


OUTSIDE = ["/etc/passwd", "../outside.mds", "a/b.mds", "..", ".", "", "a\0b", "x" * 256, "a\\b"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("entry", ["raw_data", "zip_data"])
def test_a_shards_name_leads_nowhere_else(tmp_path: Path, name: str, entry: str) -> None:
    folder = write_latents_cache(tmp_path / "far", [latent_record(1)])
    packed = zstd.compress(shard_of(folder).read_bytes())

    def with_zip(shard: dict[str, Any]) -> None:
        zipped = {"basename": "packed.zstd", "bytes": len(packed), "hashes": {}}
        shard.update(compression="zstd", zip_data=zipped)
        shard[entry]["basename"] = name

    change_index(folder, with_zip)
    (folder / "packed.zstd").write_bytes(packed)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match=rf"index\.json is not an index .*{entry}\.basename"):
        MdsFolder(FarFolder(folder), tmp_path / "shards")[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_absolute_name_behind_object_storage_writes_no_file(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "far", [latent_record(1)])
    data = shard_of(folder).read_bytes()
    packed = zstd.compress(data)
    (folder / "packed.zstd").write_bytes(packed)
    target = tmp_path / "written.mds"
    zipped = {"basename": "packed.zstd", "bytes": len(packed), "hashes": {}}
    change_index(
        folder,
        lambda shard: shard.update(
            compression="zstd",
            zip_data=zipped,
            raw_data={**shard["raw_data"], "basename": str(target)},
        ),
    )
    with pytest.raises(BadInput, match=r"raw_data\.basename \('/"):
        MdsFolder(FarFolder(folder), tmp_path / "shards")[0]
    assert not target.exists()


def test_a_ledger_record_leads_to_no_other_file(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "mds", [latent_record(1)])
    store = FarFolder(tmp_path / "workspace")
    record = as_segment(store, folder)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / shard_of(folder).name).write_bytes(shard_of(folder).read_bytes())
    files = [
        entry.model_copy(update={"sha256": str(secret)}) if entry.name != "index.json" else entry
        for entry in record.files
    ]
    segment = Segment(store, record.model_copy(update={"files": tuple(files)}), tmp_path / "shards")
    with pytest.raises(CorruptData, match=r"has no sha256 of shard\.00000\.mds"):
        segment[0]


def test_more_samples_than_recorded_are_found_before_any_is_read(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "mds", [latent_record(1), latent_record(2)])
    store = FolderStore(tmp_path / "workspace")
    with pytest.raises(CorruptData, match=r"names 2 samples where the ledger record .* has 1"):
        Segment(store, as_segment(store, folder), tmp_path / "shards")


def compressed_zeros(folder: Path, num_bytes: int, claimed: int) -> Path:
    """Write a cache whose shard unpacks to zeros, more than its index claims."""
    write_latents_cache(folder, [latent_record(1)])
    packed = zstd.compress(bytes(num_bytes))
    (folder / "packed.zstd").write_bytes(packed)
    zipped = {"basename": "packed.zstd", "bytes": len(packed), "hashes": {}}
    return change_index(
        folder,
        lambda shard: shard.update(
            compression="zstd",
            zip_data=zipped,
            raw_data={"basename": "raw.mds", "bytes": claimed, "hashes": {}},
        ),
    )


def test_a_shard_that_unpacks_to_more_than_claimed_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = compressed_zeros(tmp_path / "32x32x5", 64 << 20, claimed=100_000)
    written = []
    write = Path.open

    def seen(self: Path, *arguments: Any, **options: Any) -> Any:
        written.append(self)
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", seen)
    with pytest.raises(CorruptData, match="becomes more than 100000 bytes where its index says"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")[0]
    assert [path for path in (tmp_path / "shards").rglob("*") if path.is_file()] == []
    assert any(path.is_relative_to(tmp_path / "shards") for path in written)


def test_a_claim_of_a_thousand_times_the_size_is_refused_from_the_index(tmp_path: Path) -> None:
    folder = compressed_zeros(tmp_path / "32x32x5", 64 << 20, claimed=64 << 20)
    with pytest.raises(BadInput, match="would become 67108864, more than 1000 times as many"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")


def test_counts_are_bounded_by_the_files(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    change_index(folder, lambda shard: shard.update(samples=1_000_000_000))
    config = train_config(tmp_path / "w", data={"local": [str(folder)]})
    store = FolderStore(Path(config.workspace))
    with pytest.raises(BadInput, match="1000000000 samples do not fit into raw_data"):
        read_items(store, find_sources(config, store), config.data)


def test_samples_outside_of_the_shard_are_said(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1), latent_record(2)])
    shard = shard_of(folder)
    data = bytearray(shard.read_bytes())
    data[8:12] = (1 << 31).to_bytes(4, "little")
    shard.write_bytes(data)
    with pytest.raises(CorruptData, match=r"shard\.00000\.mds has samples at other places"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")[0]


def test_a_sample_that_is_no_sample_is_named(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    shard = shard_of(folder)
    data = bytearray(shard.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    data[first + 20] = 255  # the type of the first column's values
    shard.write_bytes(data)
    with pytest.raises(CorruptData, match=r"Record 0 of .*32x32x5_00 cannot be read"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")[0]


def test_a_local_shard_that_is_a_folder_is_said(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    shard = shard_of(folder)
    shard.unlink()
    shard.mkdir()
    size = shard.stat().st_size
    change_index(folder, lambda entry: entry["raw_data"].update(bytes=max(size, 4096)))
    with pytest.raises(HvkfError, match=r"shard\.00000\.mds"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")[0]


def test_an_index_larger_than_any_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match=r"index\.json cannot be read: file too large"):
        MdsFolder(FolderStore(tmp_path), tmp_path / "shards")


def test_an_index_that_is_a_pipe_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(BadInput, match=r"index\.json cannot be read: it is a named pipe"):
        MdsFolder(FolderStore(tmp_path), tmp_path / "shards")


def test_a_hash_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    folder = write_latents_cache(tmp_path / "32x32x5_00", [latent_record(1)])
    change_index(folder, lambda shard: shard["raw_data"].update(hashes={"crc": "00"}))
    with pytest.raises(BadInput, match="the hash 'crc', which nobody knows"):
        MdsFolder(FolderStore(folder), tmp_path / "shards")[0]
    assert json.loads((folder / "index.json").read_text())
