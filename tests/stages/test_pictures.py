"""Pictures of what stages made: what is in them is what was stored."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hvkf.cli import run_stage
from hvkf.errors import BadInput, CorruptData
from hvkf.media.writing import write_mp4
from hvkf.records import TrainResult
from hvkf.stages.pictures import LABEL_HEIGHT, MAX_PAIRS, as_data_uri, draw, smoothed
from hvkf.stages.previews import HEIGHT, MAX_FRAMES, Preview, preview_path
from hvkf.stages.render_records import ManifestRecord
from hvkf.storage import FolderStore
from hvkf.training.losses import write_losses
from tests.workspaces import small_config, write_dataset


def picture(drawn: tuple[bytes, str]) -> Image.Image:
    return Image.open(io.BytesIO(drawn[0]))


def test_a_contact_sheet_has_a_row_for_each_bucket(tmp_path: Path) -> None:
    config = small_config(tmp_path, write_dataset(tmp_path / "data", 3))
    store = FolderStore(Path(config.workspace))
    run_stage("ingest", config, store)
    result = run_stage("cache", config, store).result
    sheet = picture(draw("cache", result, store))
    assert sheet.height == 2 * (HEIGHT + LABEL_HEIGHT)
    pixels = np.asarray(sheet)
    for row in range(2):
        top = row * (HEIGHT + LABEL_HEIGHT) + LABEL_HEIGHT
        assert pixels[top : top + HEIGHT, :HEIGHT].std() > 10, "a clip's frame, not one colour"

    for path in list(store.list("previews")):
        store.delete(path)
    with pytest.raises(BadInput, match="has a preview: it was made before"):
        draw("cache", result, store)


def test_a_manifests_picture_has_the_ends_of_its_first_videos(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[0], frames[-1] = (250, 0, 0), (0, 0, 250)
    write_mp4(tmp_path / "video.mp4", frames, fps=8)
    rows = [{"id": f"row{n}", "video": "" if n % 2 else "video.mp4"} for n in range(2 * MAX_PAIRS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    record = ManifestRecord(
        num_rows=len(rows), num_failed=MAX_PAIRS, results="results.parquet", gallery="index.html"
    )
    store.put("record.json", record.to_json())
    sheet = picture(draw("render", "record.json", store))
    assert sheet.height == MAX_PAIRS * (HEIGHT + LABEL_HEIGHT)
    first_row = np.asarray(sheet)[LABEL_HEIGHT + HEIGHT // 2]
    width = round(48 * HEIGHT / 32)
    assert first_row[width // 2, 0] > 200, "the first frame is red"
    assert first_row[width + width // 2, 2] > 200, "the last one is blue"

    none = pa.Table.from_pylist([{"id": "row0", "video": ""}])
    pq.write_table(none, tmp_path / "results.parquet")
    with pytest.raises(BadInput, match=r"No row of record\.json has a video"):
        draw("render", "record.json", store)


def test_a_preview_shows_a_few_frames_and_none_of_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    preview = Preview()
    preview.put(store, "empty")
    assert not store.exists(preview_path("empty"))
    for shade in range(MAX_FRAMES + 5):
        preview.add(np.full((48, 24, 3), 10 * shade, np.uint8))
    preview.put(store, "full")
    shown = np.asarray(Image.open(io.BytesIO(store.read(preview_path("full")))))
    assert shown.shape == (HEIGHT, MAX_FRAMES * HEIGHT // 2, 3)
    assert [round(float(shown[0, HEIGHT // 4 + n * HEIGHT // 2, 0]) / 10) for n in range(3)] == [
        0,
        1,
        2,
    ]


def test_curves_are_drawn_from_all_rows_of_a_run(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    result = TrainResult(
        run_id="one",
        digest="d",
        num_steps=3,
        num_epochs=1,
        num_items=3,
        num_holdout=1,
        checkpoint="c",
        lora="l",
        loss=1.0,
        validation_loss=None,
    )
    store.put("runs/one/result.json", result.to_json())
    rows = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    write_losses(
        store,
        "one",
        [*rows[:2], {**rows[2], "validation_loss": 0.5, "validation_loss_at_0.3": 0.4}],
    )
    drawn = draw("train", "runs/one/result.json", store)
    assert picture(drawn).size == (1100, 360)
    assert as_data_uri(drawn).startswith("data:image/png;base64,")
    # The stage prints the path of the losses too, and a run at work has no other.
    assert draw("train", "runs/one/losses.jsonl", store) == drawn
    write_losses(store, "one", rows[:2])
    with pytest.raises(CorruptData, match="steps 1 to 3"):
        draw("train", "runs/one/result.json", store)


def test_the_mean_of_the_steps_before_is_a_mean() -> None:
    losses = np.arange(100, dtype=np.float64)
    means = smoothed(losses)
    assert means[0] == 0.0
    assert means[10] == pytest.approx(losses[:11].mean())
    assert means[99] == pytest.approx(losses[75:100].mean())


def test_what_has_no_picture_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no picture of ingest, but of: cache, train, evaluate"):
        draw("ingest", "x", FolderStore(tmp_path))
    with pytest.raises(BadInput, match=r"There is no evals/x.json in .*run `hvkf evaluate` first"):
        draw("evaluate", "evals/x.json", FolderStore(tmp_path))
