"""An evaluation's figures over its pairs: means, and what the LoRA gained, with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

from hvkf.errors import BadInput
from hvkf.records import FileEntry
from hvkf.shown import counted
from hvkf.stages.evaluate_records import (
    ClipFidelity,
    Comparison,
    Evaluation,
    Mean,
    Means,
    Metrics,
    Motion,
    PairMetrics,
    Rendered,
    Settings,
    pair_folder,
    video_of,
)
from hvkf.stages.evaluate_statistics import MIN_VIDEOS, num_videos, video_interval
from hvkf.stages.evaluate_weights import frechet_distance

MAX_PSNR_DB = 100.0
AGAINST = {"base": "the base model", "freeze": "a freeze", "cross_fade": "a cross-fade"}
COMPARED: dict[str, Callable[[ClipFidelity], float]] = {
    "keyframe_psnr_db": lambda clip: (clip.first.psnr_db + clip.last.psnr_db) / 2,
    "clip_psnr_db": lambda clip: clip.clip.psnr_db,
    "clip_ssim": lambda clip: clip.clip.ssim,
}


def summarise(
    work: Evaluation,
    settings: Settings,
    rendered: Sequence[Rendered],
    apart: Sequence[Rendered] = (),
) -> Metrics:
    """Gather the figures of all pairs that were rendered both ways.

    Args:
        work: What was evaluated.
        settings: How.
        rendered: The pairs that count.
        apart: Those that are only shown.

    Raises:
        BadInput: there is none that counts.
    """
    made = _made_both_ways(rendered)
    source_of = {pair.key: pair.source_sha256 for pair in work.rendered}
    pairs = [_pair(work, pair, source_of) for pair in made]
    if not pairs:
        raise BadInput(
            f"Not one of {counted(len(rendered), 'pair')} was rendered both with the LoRA and "
            "without: set evaluate.max_failed_fraction lower to see why."
        )
    return Metrics(
        run_id=str(work.lora.run_id),
        checkpoint=str(work.lora.checkpoint),
        lora_sha256=str(work.lora.sha256),
        settings=settings,
        lora=_with_distance(_means([pair.lora for pair in pairs]), made, "lora"),
        base=_with_distance(_means([pair.base for pair in pairs]), made, "base"),
        ceiling=_means([pair.ceiling for pair in pairs]),
        freeze=_means([pair.freeze for pair in pairs if pair.freeze]),
        cross_fade=_means([pair.cross_fade for pair in pairs if pair.cross_fade]),
        lora_motion=_mean_motion([pair.lora_motion for pair in pairs if pair.lora_motion]),
        base_motion=_mean_motion([pair.base_motion for pair in pairs if pair.base_motion]),
        truth_motion=_mean_motion([pair.truth_motion for pair in pairs if pair.truth_motion]),
        comparisons=tuple(_comparisons(pairs)),
        pairs=tuple(pairs),
        apart=tuple(_pair(work, pair, source_of) for pair in _made_both_ways(apart)),
        failures=tuple(
            record.failure for pair in (*rendered, *apart) for record in pair if record.failure
        ),
    )


def _made_both_ways(rendered: Sequence[Rendered]) -> list[Rendered]:
    return [pair for pair in rendered if pair.base.made and pair.lora.made]


def _pair(work: Evaluation, rendered: Rendered, source_of: Mapping[str, str]) -> PairMetrics:
    base, lora = rendered
    assert base.made is not None
    assert base.ceiling is not None
    assert lora.made is not None
    files = _paths(pair_folder(work.base_root, base.key), base.files)
    files |= _paths(pair_folder(work.root, lora.key), lora.files)
    return PairMetrics(
        key=base.key,
        bucket=base.bucket,
        source=base.source,
        source_sha256=source_of.get(base.key, ""),
        prompt=base.prompt,
        lora=lora.made,
        base=base.made,
        ceiling=base.ceiling,
        freeze=base.freeze,
        cross_fade=base.cross_fade,
        lora_motion=lora.motion,
        base_motion=base.motion,
        truth_motion=base.truth_motion,
        files=files,
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

    scales = [clip.ms_ssim for clip in clips if clip.ms_ssim is not None]
    return Means(
        first=mean("first"),
        last=mean("last"),
        clip=mean("clip"),
        ms_ssim=round(sum(scales) / len(scales), 6) if scales else None,
        extras={
            name: round(sum(clip.extras[name] for clip in clips) / len(clips), 6)
            for name in sorted(clips[0].extras)
        },
    )


def _with_distance(means: Means, rendered: Sequence[Rendered], side: str) -> Means:
    """Add FVD, which is a figure of all videos together, where features were taken."""
    made = [getattr(pair, side).features for pair in rendered]
    if not all(made):
        return means
    distance = frechet_distance(made, [pair.base.truth_features for pair in rendered])
    if distance is None:
        return means
    return means.model_copy(update={"extras": {**means.extras, "fvd": round(distance, 4)}})


def _mean_motion(motions: Sequence[Motion]) -> Motion:
    count = len(motions)
    return Motion(
        **{
            name: round(sum(getattr(motion, name) for motion in motions) / count, 6)
            for name in Motion.model_fields
        }
    )


def _comparisons(pairs: Sequence[PairMetrics]) -> list[Comparison]:
    """Compare with the base model and the trivial answers; none with too few videos."""
    videos = [video_of(pair) for pair in pairs]
    if num_videos(videos) < MIN_VIDEOS:
        return []
    return [
        Comparison(
            figure=figure,
            against=words,
            gain=video_interval(
                [read(pair.lora) - read(getattr(pair, other)) for pair in pairs], videos
            ),
        )
        for other, words in AGAINST.items()
        for figure, read in COMPARED.items()
        if other == "base" or figure != "keyframe_psnr_db"  # a cross-fade has the very keyframes
    ]
