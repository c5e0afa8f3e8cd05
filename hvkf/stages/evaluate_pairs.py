"""Rendering held-out pairs on one device: first all without the LoRA, then all with it."""

import itertools
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from pathlib import Path

import torch

from hvkf import ledger
from hvkf.captions import clean_caption
from hvkf.config import Config
from hvkf.errors import AlreadyExists, HvkfError
from hvkf.loras import local_lora_file
from hvkf.lossless_video import unpack_frames
from hvkf.media.errors import MediaFault, only_this_file
from hvkf.media.writing import playable_rate
from hvkf.model.conditioning import keyframes_of
from hvkf.model.image_quality import ms_ssim
from hvkf.model.optical_flow import flow_warp_error
from hvkf.model.renderer import Renderer, RenderFault
from hvkf.model.video_motion import (
    colour_drift,
    cross_fade_share,
    end_jump,
    frame_steps,
    longest_still,
)
from hvkf.model_source import cache_folder
from hvkf.progress import Progress, progress
from hvkf.records import Failure, FileEntry
from hvkf.shards import Sample, Segment
from hvkf.stages.evaluate_extras import Extras
from hvkf.stages.evaluate_records import (
    BASE_VIDEO,
    FIRST_FRAME,
    LAST_FRAME,
    LORA_VIDEO,
    TRUTH_VIDEO,
    ClipFidelity,
    Evaluation,
    Motion,
    PairRecord,
    PairTask,
    pair_folder,
    pair_path,
)
from hvkf.stages.render_video import fidelity
from hvkf.stages.rendered_files import put_frame, put_video
from hvkf.stops import raise_if_told
from hvkf.storage import Store
from hvkf.user_files import shortened

CRF = 18
NUM_OPEN_SEGMENTS = 8
VIDEOS_NOTE = "videos"  # what the bar counts: one without the LoRA and one with it for each pair


def evaluate_pairs(config: Config, store: Store, work: Evaluation, keys: Set[str]) -> None:
    """Render the pairs of these keys that have no record yet, without and with the LoRA."""
    pairs = [pair for pair in work.rendered if pair.key in keys]
    for_base = [pair for pair in pairs if not store.exists(pair_path(work.base_root, pair.key))]
    for_lora = [pair for pair in pairs if not store.exists(pair_path(work.root, pair.key))]
    if not for_base and not for_lora:
        return
    with progress("evaluate", len(for_base) + len(for_lora)) as shown:
        worker = _PairRenderer(config, store, work, shown)
        for pair in for_base:
            worker.put(work.base_root, pair, worker.render_base(pair))
            shown.advance(note=VIDEOS_NOTE)
        if for_lora:
            worker.fuse_lora()
        for pair in for_lora:
            worker.put(work.root, pair, worker.render_lora(pair))
            shown.advance(note=VIDEOS_NOTE)


class _PairRenderer:
    """The loaded models, and the settings under which they render pairs."""

    def __init__(self, config: Config, store: Store, work: Evaluation, shown: Progress) -> None:
        self._settings = config.evaluate
        self._store = store
        self._work = work
        self._shown = shown
        self._lora_file = local_lora_file(work.lora, store)
        self._renderer = Renderer(config.model, store, config.evaluate.precision)
        extras = config.evaluate.extras
        weights = Path(config.evaluate.extras_weights or "")
        self._extras = Extras(extras, weights, self._renderer.device) if extras else None
        self._segment = lru_cache(NUM_OPEN_SEGMENTS)(self._open_segment)

    def fuse_lora(self) -> None:
        """Render with the run's LoRA from now on."""
        assert self._lora_file is not None
        self._renderer.fuse_lora(self._lora_file)

    def put(self, root: str, pair: PairTask, record: PairRecord) -> None:
        """Record a rendering; one that another worker recorded stays."""
        if record.failure is not None:
            self._shown.advance(0, note=pair.key, failed=1)
        try:
            self._store.put_new(pair_path(root, pair.key), record.to_json())
        except AlreadyExists:
            return

    def render_base(self, pair: PairTask) -> PairRecord:
        """Render without the LoRA, and keep the truth, its keyframes and the ceiling."""
        return self._of_pair(pair, self._render_base)

    def render_lora(self, pair: PairTask) -> PairRecord:
        """Render with the LoRA, from the same noise."""
        return self._of_pair(pair, self._render_lora)

    def _of_pair(
        self, pair: PairTask, render: Callable[[PairTask, Sample, torch.Tensor], PairRecord]
    ) -> PairRecord:
        """Render a pair; whatever its video makes anything raise is its own failure."""
        scene = self._segment(pair.segment)[pair.position]
        try:
            with only_this_file(scene["source"]):
                truth = torch.from_numpy(unpack_frames(scene["video"]))
            return render(pair, scene, truth)
        except MediaFault as error:
            raise_if_told()
            code, message = error.code, str(error)
        except (HvkfError, OSError, MemoryError, ImportError, torch.OutOfMemoryError):
            raise  # the stage's, not the pair's: storage, room, memory
        except Exception as error:
            raise_if_told()
            # Libraries raise anything on what nobody thought of; it is recorded with its type.
            code, message = "unexpected", f"{type(error).__name__}: {shortened(str(error))}"
        failure = Failure(code=code, message=message, source=scene["source"])
        return _record(pair, scene, [], failure=failure)

    def _render_base(self, pair: PairTask, scene: Sample, truth: torch.Tensor) -> PairRecord:
        folder = pair_folder(self._work.base_root, pair.key)
        frames = self._render(pair, scene, truth, "base")
        files = [
            put_frame(self._store, folder, FIRST_FRAME, truth[0].numpy()),
            put_frame(self._store, folder, LAST_FRAME, truth[-1].numpy()),
            self._put_video(folder, TRUTH_VIDEO, truth, scene),
        ]
        if isinstance(frames, Failure):
            return _record(pair, scene, files, failure=frames)
        files.append(self._put_video(folder, BASE_VIDEO, frames, scene))
        return _record(
            pair,
            scene,
            files,
            made=self._made(frames, truth, scene),
            motion=measure_motion(frames),
            features=self._features(frames),
            truth_features=self._features(truth),
            ceiling=self._compare(self._renderer.reconstruct(truth), truth),
            freeze=self._compare(truth[:1].expand_as(truth), truth),
            cross_fade=self._compare(cross_fade(truth), truth),
            truth_motion=measure_motion(truth),
        )

    def _render_lora(self, pair: PairTask, scene: Sample, truth: torch.Tensor) -> PairRecord:
        frames = self._render(pair, scene, truth, "LoRA")
        if isinstance(frames, Failure):
            return _record(pair, scene, [], failure=frames)
        folder = pair_folder(self._work.root, pair.key)
        files = [self._put_video(folder, LORA_VIDEO, frames, scene)]
        return _record(
            pair,
            scene,
            files,
            made=self._made(frames, truth, scene),
            motion=measure_motion(frames),
            features=self._features(frames),
        )

    def _render(
        self, pair: PairTask, scene: Sample, truth: torch.Tensor, side: str
    ) -> torch.Tensor | Failure:
        try:
            return self._renderer.render(
                keyframes_of(truth),
                clean_caption(scene["caption"]),
                num_frames=len(truth),
                steps=self._settings.steps,
                guidance=self._settings.guidance,
                seed=self._settings.seed,
                item_key=pair.key,
                on_step=self._on_step(f"{side} {pair.bucket} {scene['source']}"),
            )
        except RenderFault as fault:
            return Failure(code=fault.code, message=f"{side}: {fault}", source=scene["source"])

    def _on_step(self, note: str) -> Callable[[int], None]:
        num_steps = self._settings.steps
        done = itertools.count(1)
        return lambda step: self._shown.advance(
            0, note=f"{VIDEOS_NOTE}; {note}, step {next(done)} of {num_steps}"
        )

    def _made(self, frames: torch.Tensor, truth: torch.Tensor, scene: Sample) -> ClipFidelity:
        """Compare a rendering with the truth, by the extra figures too."""
        found = self._compare(frames, truth)
        if self._extras is None:
            return found
        extras = self._extras.figures(frames, truth, clean_caption(scene["caption"]))
        return found.model_copy(update={"extras": extras})

    def _features(self, frames: torch.Tensor) -> tuple[float, ...]:
        return () if self._extras is None else self._extras.video_features(frames)

    def _compare(self, frames: torch.Tensor, truth: torch.Tensor) -> ClipFidelity:
        device = self._renderer.device
        return ClipFidelity(
            first=fidelity(frames[0], truth[0], device),
            last=fidelity(frames[-1], truth[-1], device),
            clip=fidelity(frames, truth, device),
            ms_ssim=round(ms_ssim(frames, truth, device), 6),
        )

    def _put_video(self, folder: str, name: str, frames: torch.Tensor, scene: Sample) -> FileEntry:
        fps = playable_rate(scene["fps"])
        return put_video(self._store, folder, name, frames.numpy(), fps=fps, crf=CRF)

    def _open_segment(self, segment_id: str) -> Segment:
        record = ledger.read_segment(self._store, self._work.scenes, segment_id)
        return Segment(self._store, record, cache_folder() / "shards")


def _record(
    pair: PairTask,
    scene: Sample,
    files: Sequence[FileEntry],
    *,
    made: ClipFidelity | None = None,
    failure: Failure | None = None,
    **measured: ClipFidelity | Motion | tuple[float, ...],
) -> PairRecord:
    return PairRecord(
        key=pair.key,
        bucket=pair.bucket,
        source=scene["source"],
        prompt=clean_caption(scene["caption"]),
        fps=scene["fps"],
        made=made,
        files=tuple(files),
        failure=failure,
        attempt=ledger.attempt_name(),
        **measured,
    )


def cross_fade(truth_FHWC: torch.Tensor) -> torch.Tensor:
    """Blend the first uint8 frame into the last: the answer that needs no model."""
    weights = torch.linspace(0, 1, len(truth_FHWC), dtype=torch.float64)[:, None, None, None]
    first, last = truth_FHWC[0].double(), truth_FHWC[-1].double()
    return ((1 - weights) * first + weights * last).round().to(torch.uint8)


def measure_motion(frames_FHWC: torch.Tensor) -> Motion:
    """Measure how uint8 frames between two keyframes move."""
    frames = frames_FHWC.numpy()
    steps = frame_steps(frames)
    return Motion(
        flicker=round(float(steps.mean()), 4) if len(steps) else 0.0,
        flow_warp=round(flow_warp_error(frames), 6),
        end_jump=round(end_jump(steps), 4),
        colour_drift=round(colour_drift(frames, [0, len(frames) - 1]), 4),
        freeze=round(longest_still(steps), 4),
        cross_fade=round(cross_fade_share(frames), 4),
    )
