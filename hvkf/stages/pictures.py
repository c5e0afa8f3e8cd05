"""One picture of what a stage made: buckets of cache, curves of train, keyframes of evaluate.

It is made where the flow runs, from what workers left in the workspace: no torch, no shards.
"""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw

from hvkf import ledger
from hvkf.errors import BadInput
from hvkf.records import DatasetCommit, TrainResult
from hvkf.shown import counted
from hvkf.stages.evaluate_records import Metrics, PairMetrics
from hvkf.stages.pages import data_uri
from hvkf.stages.previews import HEIGHT, read_picture, read_preview, side_by_side, to_jpeg
from hvkf.stages.render_records import ManifestRecord
from hvkf.storage import Store
from hvkf.stored import open_parquet, read_record
from hvkf.training.losses import NAME as LOSSES_NAME
from hvkf.training.losses import VALIDATION_AT, Row, read_losses
from hvkf.video import decode_frames, probe

MAX_BUCKETS = 12
MAX_PAIRS = 6
LABEL_HEIGHT = 18
MIN_WIDTH = 320
SMOOTHING_STEPS = 25
ROWS_AT_ONCE = 256


def draw(stage: str, result: str, store: Store) -> tuple[bytes, str]:
    """Draw the picture of a stage's result; return its bytes and suffix.

    Args:
        stage: cache, train, evaluate or render.
        result: The path in the workspace that the stage's summary names as its result.
        store: The workspace.

    Raises:
        BadInput: the stage has no picture, or there is no such result.
    """
    drawers: dict[str, Callable[[Store, str], bytes]] = {
        "cache": contact_sheet,
        "train": curves,
        "evaluate": keyframes,
        "render": videos,
    }
    if stage not in drawers:
        raise BadInput(f"There is no picture of {stage}, but of: {', '.join(drawers)}.")
    if not store.exists(result):
        raise BadInput(f"There is no {result} in {store.url} to draw: run `hvkf {stage}` first.")
    return drawers[stage](store, result), ".png" if stage == "train" else ".jpg"


def as_data_uri(picture: tuple[bytes, str]) -> str:
    """Write a picture so that a page can hold it itself."""
    return data_uri(*picture)


def contact_sheet(store: Store, commit_path: str) -> bytes:
    """Show each bucket's first samples, one row a bucket, from the previews of its segments."""
    root = commit_path.partition("/commits/")[0]
    commit = read_record(store, commit_path, DatasetCommit)
    rows: dict[str, Image.Image] = {}
    counts: dict[str, int] = {}
    masked = set(commit.masked)
    for segment in commit.segments:
        record = ledger.read_segment(store, root, segment)
        live = sum(item.key not in masked for item in record.items)
        counts[record.bucket] = counts.get(record.bucket, 0) + live
        if record.bucket not in rows and (preview := read_preview(store, segment)) is not None:
            rows[record.bucket] = preview
    if not rows:
        raise BadInput(f"No segment of {commit_path} has a preview: it was made before there were.")
    shown = sorted(rows)[:MAX_BUCKETS]
    titles = [f"{bucket}: {counted(counts[bucket], 'sample')}" for bucket in shown]
    return to_jpeg(_stack([rows[bucket] for bucket in shown], titles))


def curves(store: Store, path: str) -> bytes:
    """Draw the losses of a run over its steps, and the validation loss.

    Args:
        store: The workspace.
        path: The run's result, or its losses, which a run at work has too.
    """
    # Here: it takes half a second, which the other pictures need not pay.
    from matplotlib.figure import Figure

    if path.endswith(f"/{LOSSES_NAME}"):
        run_id = path.split("/")[-2]
        num_steps = len(store.read(path).splitlines())
    else:
        result = read_record(store, path, TrainResult)
        run_id, num_steps = result.run_id, result.num_steps
    rows = read_losses(store, run_id, num_steps)
    steps = [row["step"] for row in rows]
    losses = np.array([row["loss"] for row in rows], dtype=np.float64)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes, levels = figure.subplots(1, 2)
    axes.set(xlabel="step", ylabel="loss", title=run_id)
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="loss")
    axes.plot(steps, smoothed(losses), color="tab:blue", label=f"mean of {SMOOTHING_STEPS} steps")
    measured = _measured(rows, "validation_loss")
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", color="tab:orange", label="validation loss")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    levels.set(xlabel="step", title="validation loss by noise level (sigma)")
    for key in sorted({key for row in rows for key in row if key.startswith(VALIDATION_AT)}):
        found = _measured(rows, key)
        levels.plot(*zip(*found, strict=True), "o-", label=key.removeprefix(VALIDATION_AT))
    if levels.lines:
        levels.legend()
    levels.grid(visible=True, alpha=0.3)
    sink = io.BytesIO()
    # No version of the library in the file: equal losses give equal bytes.
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()


def _measured(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if key in row]


def smoothed(losses: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """Average each step's loss with those before it, `SMOOTHING_STEPS` in all."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(0, ends - SMOOTHING_STEPS)
    return [float(mean) for mean in (sums[ends] - sums[begins]) / (ends - begins)]


def keyframes(store: Store, metrics_path: str) -> bytes:
    """Show, for the first pairs: given first image, made first and last frame, given last."""
    return draw_keyframes(store, read_record(store, metrics_path, Metrics).pairs)


def draw_keyframes(store: Store, pairs: Sequence[PairMetrics]) -> bytes:
    """Draw the first of some pairs, one row a pair; return a JPEG."""
    rows, titles = [], []
    for pair in pairs[:MAX_PAIRS]:
        given = [read_picture(store, pair.files[end]) for end in ("first", "last")]
        made = _ends(store, pair.files["lora"])
        rows.append(side_by_side([_sized(picture) for picture in (given[0], *made, given[1])]))
        titles.append(f"{pair.source}, {pair.bucket}: given, made ... made, given")
    return to_jpeg(_stack(rows, titles))


def videos(store: Store, record_path: str) -> bytes:
    """Show the first and the last frame of the first videos of a manifest."""
    record = read_record(store, record_path, ManifestRecord)
    rows: list[Image.Image] = []
    titles: list[str] = []
    with open_parquet(store, record.results) as table:
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=["id", "video"]):
            for found in batch.to_pylist():
                if found["video"] and len(rows) < MAX_PAIRS:
                    ends = [_sized(picture) for picture in _ends(store, found["video"])]
                    rows.append(side_by_side(ends))
                    titles.append(f"{found['id']}: first and last frame")
            if len(rows) == MAX_PAIRS:
                break
    if not rows:
        raise BadInput(f"No row of {record_path} has a video: the table of results says why.")
    return to_jpeg(_stack(rows, titles))


def _ends(store: Store, path: str) -> list[Image.Image]:
    """Decode the first and the last frame of a stored video."""
    with tempfile.TemporaryDirectory() as folder:
        file = store.local_path(path)
        if file is None:
            file = Path(folder) / PurePosixPath(path).name
            store.download(path, file)
        wanted = [0, probe(file).num_frames - 1]
        return [Image.fromarray(frame) for _, frame in decode_frames(file, wanted)]


def _sized(picture: Image.Image) -> Image.Image:
    width = max(1, round(picture.width * HEIGHT / picture.height))
    return picture.resize((width, HEIGHT), Image.Resampling.BILINEAR)


def _stack(rows: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Put rows below each other, each under its title."""
    width = max(MIN_WIDTH, *(row.width for row in rows))
    height = sum(row.height + LABEL_HEIGHT for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for row, title in zip(rows, titles, strict=True):
        pen.text((4, top + 3), title, fill="black")
        sheet.paste(row, (0, top + LABEL_HEIGHT))
        top += row.height + LABEL_HEIGHT
    return sheet
