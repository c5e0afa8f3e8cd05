"""One look at a source video: its hash, its size and length, its scenes."""

from pathlib import Path

from hvkf.near_duplicates import perceptual_hash
from hvkf.records import Failure
from hvkf.settings.data import IngestConfig
from hvkf.stages.ingest import VideoScan, VideoTask
from hvkf.stages.ingest_sources import UNREADABLE, SourceError, local_file
from hvkf.storage import Store, file_sha256
from hvkf.user_files import reason_of
from hvkf.video import MediaFault, probe, split_scenes


def scan_video(task: VideoTask, settings: str, config: IngestConfig, sources: Store) -> VideoScan:
    """Hash and probe one video and cut it into scenes; a fault is recorded, not raised."""
    try:
        with local_file(sources, task.source) as file:
            return _scan(task, settings, config, file)
    except (SourceError, MediaFault) as error:
        failure = Failure(code=error.code, message=str(error), source=task.source)
    except OSError as error:  # the disk, while it was read
        message = f"it cannot be read: {reason_of(error)}"
        failure = Failure(code=UNREADABLE, message=message, source=task.source)
    return VideoScan(task=task, settings=settings, failure=failure)


def _scan(task: VideoTask, settings: str, config: IngestConfig, file: Path) -> VideoScan:
    info = probe(file)
    cuts: list[tuple[int, int]] = [(0, info.num_frames)]
    if config.scene_split != "none":
        cuts = split_scenes(
            file,
            detector=config.scene_split,
            threshold=config.scene_threshold,
            min_scene_frames=config.min_scene_frames,
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
            perceptual_hash(file, info.num_frames) if config.find_near_duplicates else ""
        ),
    )
