"""One ingested clip whose samples are to be made."""

from pathlib import Path
from typing import NamedTuple

from hvkf import catalog
from hvkf.config import Config
from hvkf.records import Clip
from hvkf.stages import cache, ingest
from hvkf.stages.cache import SceneItem
from hvkf.storage import FolderStore
from tests.workspaces import small_config, write_clip, write_table


class OneClip(NamedTuple):
    """A clip, its samples, and the settings that they were listed with."""

    config: Config
    clip: Clip
    items: list[SceneItem]


def ingest_one_clip(folder: Path) -> OneClip:
    """Ingest one clip of 30 frames in windows of three buckets, two of them of one size."""
    write_clip(folder / "data" / "videos" / "a.mp4", 1, num_frames=30)
    table = write_table(folder / "data", [("a", "videos/a.mp4")])
    buckets = ["32x32x5", "32x32x9", "48x32x9"]
    config = small_config(
        folder,
        table,
        cache={"bucket_reso": buckets, "frames": "windows"},
        ingest={"metadata": str(table), "min_holdout": 0},
    )
    store = FolderStore(Path(config.workspace))
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    ingest.commit(plan, store)
    clips = catalog.read_clips(store, catalog.newest_catalog(store, "default").catalog)
    return OneClip(config, clips[0], cache.wanted_items(clips, config.cache).items)
