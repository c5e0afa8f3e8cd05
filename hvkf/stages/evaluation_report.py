"""An evaluation's figures over its pairs, and the report that shows them with their videos."""

import math
from collections.abc import Sequence
from pathlib import PurePosixPath

from hvkf.errors import BadInput
from hvkf.records import FileEntry
from hvkf.stages.evaluate import (
    ClipFidelity,
    Evaluation,
    Mean,
    Means,
    Metrics,
    PairMetrics,
    Rendered,
    Settings,
    pair_folder,
)
from hvkf.stages.pages import data_uri, render_page
from hvkf.storage import Store

MAX_PSNR_DB = 100.0
PLACES = {"first": "First frame", "last": "Last frame", "clip": "Whole clip"}


def summarise(work: Evaluation, settings: Settings, rendered: Sequence[Rendered]) -> Metrics:
    """Gather the figures of all pairs that were rendered both ways.

    Raises:
        BadInput: there is none.
    """
    pairs = []
    for pair in rendered:
        base, lora = pair
        if base.made is None or base.ceiling is None or lora.made is None:
            continue
        files = _paths(pair_folder(work.base_root, base.key), base.files)
        files |= _paths(pair_folder(work.root, lora.key), lora.files)
        pairs.append(
            PairMetrics(
                key=base.key,
                bucket=base.bucket,
                source=base.source,
                prompt=base.prompt,
                lora=lora.made,
                base=base.made,
                ceiling=base.ceiling,
                files=files,
            )
        )
    if not pairs:
        raise BadInput(
            f"Not one of {len(rendered)} pairs was rendered both with the LoRA and without: set "
            "evaluate.max_failed_fraction lower to see why."
        )
    return Metrics(
        run_id=str(work.lora.run_id),
        checkpoint=str(work.lora.checkpoint),
        lora_sha256=str(work.lora.sha256),
        settings=settings,
        lora=_means([pair.lora for pair in pairs]),
        base=_means([pair.base for pair in pairs]),
        ceiling=_means([pair.ceiling for pair in pairs]),
        pairs=tuple(pairs),
        failures=tuple(record.failure for pair in rendered for record in pair if record.failure),
    )


def _paths(folder: str, files: Sequence[FileEntry]) -> dict[str, str]:
    return {PurePosixPath(entry.name).stem: f"{folder}/{entry.name}" for entry in files}


def _means(clips: Sequence[ClipFidelity]) -> Means:
    def mean(place: str) -> Mean:
        found = [getattr(clip, place) for clip in clips]
        count = len(found)
        mse = sum(entry.mse for entry in found) / count
        pooled = -10 * math.log10(mse) if mse > 0 else MAX_PSNR_DB
        return Mean(
            psnr_db=round(sum(entry.psnr_db for entry in found) / count, 4),
            pooled_psnr_db=round(min(MAX_PSNR_DB, pooled), 4),
            ssim=round(sum(entry.ssim for entry in found) / count, 6),
        )

    return Means(first=mean("first"), last=mean("last"), clip=mean("clip"))


def write_report(store: Store, path: str, metrics: Metrics) -> None:
    """Write the report: one HTML file that holds its pictures and videos itself."""
    cards = []
    for pair in metrics.pairs:
        media = {
            name: data_uri(store.read(file), PurePosixPath(file).suffix)
            for name, file in pair.files.items()
        }
        cards.append({"pair": pair, "media": media})
    store.put(path, render_page("evaluation.html.j2", metrics=metrics, cards=cards, places=PLACES))
