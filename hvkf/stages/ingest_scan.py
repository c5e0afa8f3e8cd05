"""One look at a source video: its hash, its size and length, its scenes."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvkf.near_duplicates import perceptual_hash
from hvkf.records import Failure
from hvkf.settings.data import IngestConfig
from hvkf.stages.ingest import VideoScan, VideoTask
from hvkf.storage import Store, file_sha256
from hvkf.video import MediaFault, probe, split_scenes


@contextlib.contextmanager
def local_file(sources: Store, path: str) -> Iterator[Path]:
    """Give a source video as a local file: where it lies, or a copy for the time being."""
    found = sources.local_path(path)
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="hvkf-source-") as folder:
        file = Path(folder) / Path(path).name
        sources.download(path, file)
        yield file


def scan_video(task: VideoTask, settings: str, config: IngestConfig, sources: Store) -> VideoScan:
    """Hash and probe one video and cut it into scenes; a fault is recorded, not raised."""
    try:
        with local_file(sources, task.source) as file:
            return _scan(task, settings, config, file)
    except FileNotFoundError:
        failure = Failure(code="missing", message="there is no such file", source=task.source)
    except MediaFault as fault:
        failure = Failure(code=fault.code, message=str(fault), source=task.source)
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
