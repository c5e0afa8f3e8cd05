from pathlib import Path

import pytest

from hvkf.errors import BadInput
from hvkf.storage import FolderStore
from hvkf.training.items import find_sources
from hvkf.training.shard_cache import check_cache_limit, parse_amount
from tests.training.latents import train_config, write_latents
from tests.training.test_dataset import cache_config, write_cache


class FarStore(FolderStore):
    """A workspace whose objects lie on another machine."""

    def local_path(self, path: str) -> Path | None:
        return None


@pytest.mark.parametrize(
    ("text", "amount"),
    [("5tb", 5 << 40), ("1.5 GB", 3 << 29), ("64kb", 65536), ("1000", 1000), ("7b", 7)],
)
def test_amounts_are_read_as_the_reference_does(text: str, amount: int) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize("text", ["much", "-5gb", "5xb", ""])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write such as 500gb"):
        parse_amount(text)


def test_shards_that_lie_here_take_no_room(tmp_path: Path) -> None:
    config, store = train_config(tmp_path), FolderStore(tmp_path)
    write_latents(store, config)
    check_cache_limit("0b", store, find_sources(config, store))


def test_more_shards_than_may_be_kept_are_refused(tmp_path: Path) -> None:
    config, store = train_config(tmp_path), FarStore(tmp_path)
    write_latents(store, config)
    sources = find_sources(config, store)
    check_cache_limit("5tb", store, sources)
    check_cache_limit(None, store, sources)
    with pytest.raises(BadInput, match=r"more than data.streaming_kwargs.cache_limit=1kb allows"):
        check_cache_limit("1kb", store, sources)


def test_compressed_caches_of_the_reference_count_unpacked(tmp_path: Path) -> None:
    store, folder = FolderStore(tmp_path), tmp_path / "32x32x5_00"
    write_cache(folder, 2, compression="zstd")
    sources = find_sources(cache_config(store, folder), store)
    with pytest.raises(BadInput, match=r"cache_limit=1kb"):
        check_cache_limit("1kb", store, sources)
