"""Manifests for tests of rendering: their images, their settings, and what came of them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from hvkf.config import Config
from hvkf.records import Plan, Summary
from hvkf.stages import render
from hvkf.stages.render_fetch import RESULTS_NAME
from hvkf.stages.render_records import ManifestRecord, RenderTask
from hvkf.stages.render_rows_file import read_parts
from hvkf.storage import FolderStore
from tests.workspaces import GOLDEN, small_config

SIDE = 32
LORA = GOLDEN / "lora_r4_a8.sft"


def write_image(file: Path, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def write_images(folder: Path) -> Path:
    """Make a folder of images: two of one size, and a wide one."""
    folder.mkdir()
    write_image(folder / "a.png", 1)
    write_image(folder / "b.png", 2)
    write_image(folder / "wide.png", 3, (70, 40))
    return folder


def write_manifest(folder: Path, rows: list[dict[str, object]], name: str = "pairs.csv") -> Path:
    columns = dict.fromkeys(
        ["id", "first_frame", "last_frame", "prompt", *(k for r in rows for k in r)]
    )
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    (folder / name).write_text(sink.getvalue(), encoding="utf-8")
    return folder / name


def row(
    name: str, first: str = "a.png", last: str = "b.png", **further: object
) -> dict[str, object]:
    return {"id": name, "first_frame": first, "last_frame": last, "prompt": "A cat.", **further}


def config_for(manifest: Path, **settings: object) -> Config:
    return small_config(
        manifest.parents[1],
        Path("metadata.csv"),
        render={"manifest": str(manifest), "lora": str(LORA), "lora_alpha": 8.0, **settings},
    )


def rendered(config: Config, store: FolderStore) -> Summary:
    """Plan, run all parts, commit."""
    plan = render.plan(config, store)
    if plan.parts:
        render.run(plan, store, plan.parts)
    return render.commit(plan, store)


def rows_of(plan: Plan, store: FolderStore, *parts: int) -> list[RenderTask]:
    """Read the rows of some parts, of all when none is named."""
    return read_parts(store, [plan.parts[index] for index in parts] if parts else plan.parts)


def without_times(found: dict[str, bytes]) -> dict[str, bytes]:
    """Take the clock's words out of tables of results, and the hashes of these tables out of the
    records that name them: all else must be equal bytes.
    """

    def table_without(data: bytes) -> bytes:
        table = pq.ParquetFile(io.BytesIO(data)).read().drop_columns(["begun_s", "seconds"])
        return json.dumps(table.to_pylist()).encode()

    def record_without(data: bytes) -> bytes:
        record = ManifestRecord.from_json(data)
        files = [file for file in record.files if not file.name.endswith(RESULTS_NAME)]
        assert len(files) == len(record.files) - 1
        return record.model_copy(update={"files": tuple(files)}).to_json()

    without = {RESULTS_NAME: table_without, "record.json": record_without}
    found = dict(found)
    for path, data in found.items():
        name = path.rpartition("/")[2]
        if path.startswith("manifests/") and name in without:
            found[path] = without[name](data)
    return found


def results(store: FolderStore, summary: Summary) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(store.root / summary.links["results"]).to_pylist()
    return found
