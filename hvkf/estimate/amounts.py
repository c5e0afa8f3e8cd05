"""How much there is to do: samples by bucket, of a catalog or as told. Loads no torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hvkf.buckets import Bucket
from hvkf.catalog import newest_catalog, read_clips
from hvkf.config import Config
from hvkf.errors import BadInput, ConfigError
from hvkf.stages.cache import wanted_items
from hvkf.storage import open_folder

DEFAULT_CLIPS = 1000


@dataclass(frozen=True)
class Amounts:
    """How much there is to do.

    Attributes:
        clips: Samples by bucket.
        source: Where the numbers are from, in words.
        videos: To render.
    """

    clips: Mapping[Bucket, int]
    source: str
    videos: int


def find_amounts(config: Config, clips: int | None, videos: int) -> Amounts:
    """Count samples by bucket.

    Args:
        config: The configuration.
        clips: Samples of each bucket; left out, those of the workspace's newest catalog, or 1000.
        videos: To render.

    Raises:
        ConfigError: no buckets are configured.
        BadInput: no clip of the catalog enters any bucket.
    """
    if not config.cache.bucket_reso:
        raise ConfigError(
            "cache.bucket_reso is empty: list the buckets to plan for as WxHxF, such as "
            "--cache.bucket_reso=960x544x33."
        )
    dataset = config.ingest.dataset
    if clips is None and (found := _of_catalog(config)) is not None:
        return Amounts(found, f"of the newest catalog of data set {dataset!r}", videos)
    count = clips or DEFAULT_CLIPS
    of_each = {Bucket.parse(text): count for text in config.cache.bucket_reso}
    source = "as told" if clips else "there is no catalog yet, --clips says another number"
    return Amounts(of_each, f"{count:,} of each bucket ({source})", videos)


def _of_catalog(config: Config) -> dict[Bucket, int] | None:
    store = open_folder(config.workspace)
    try:
        catalog = newest_catalog(store, config.ingest.dataset)
    except BadInput:  # nothing was ingested yet
        return None
    items = wanted_items(read_clips(store, catalog.catalog), config.cache).items
    counts = Counter(Bucket.parse(item.bucket) for item in items)
    return dict(sorted(counts.items()))
