"""One look at a source video: its hash, its size and length, its scenes."""

from pathlib import Path

from hvkf.media.errors import MediaFault, only_this_file
from hvkf.media.reading import Choices
from hvkf.media.scenes import split_scenes
from hvkf.near_duplicates import perceptual_hash
from hvkf.records import Failure
from hvkf.settings.data import IngestConfig
from hvkf.stages.ingest_records import VideoScan, VideoTask
from hvkf.stages.ingest_sources import SourceError, local_file
from hvkf.storage import Store, file_sha256
from hvkf.video import probe


def scan_video(task: VideoTask, settings: str, config: IngestConfig, sources: Store) -> VideoScan:
    """Hash and probe one video and cut it into scenes; an error is recorded, not raised."""
    try:
        with only_this_file(task.source), local_file(sources, task.source) as file:
            return _scan(task, settings, config, file)
    except (SourceError, MediaFault) as error:
        failure = Failure(code=error.code, message=str(error), source=task.source)
    return VideoScan(task=task, settings=settings, failure=failure)


def _scan(task: VideoTask, settings: str, config: IngestConfig, file: Path) -> VideoScan:
    info = probe(file, Choices(interlaced=config.interlaced, hdr=config.hdr))
    cuts: list[tuple[int, int]] = [(0, info.num_frames)]
    if config.scene_split != "none":
        cuts = split_scenes(
            file,
            detector=config.scene_split,
            threshold=config.scene_threshold,
            min_scene_frames=config.min_scene_frames,
            reading=info.reading,
        )
    return VideoScan(
        task=task,
        settings=settings,
        sha256=file_sha256(file),
        width=info.width,
        height=info.height,
        fps=float(info.fps),
        num_frames=info.num_frames,
        cuts=tuple(cuts),
        perceptual_hash=(
            perceptual_hash(file, info.num_frames, info.reading)
            if config.find_near_duplicates
            else ""
        ),
        duration_s=info.duration_s,
        times_s=info.times_s,
        reading=info.reading,
        notes=info.notes,
    )
