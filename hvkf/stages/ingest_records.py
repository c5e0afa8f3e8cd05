"""What ingest knows of one source video, from task to scan."""

from hvkf.records import Failure, Note, Reading, Record


class VideoTask(Record):
    """One source video to look at, as it was when the plan was made."""

    source: str
    size: int
    tag: str


class VideoScan(Record):
    """What one look at a source video found; `failure` says why it cannot be used.

    `times_s` holds the time of each frame where the frame rate is variable.
    """

    task: VideoTask
    settings: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    num_frames: int = 0
    duration_s: float = 0.0
    cuts: tuple[tuple[int, int], ...] = ()
    perceptual_hash: str = ""
    times_s: tuple[float, ...] = ()
    reading: Reading = Reading()
    notes: tuple[Note, ...] = ()
    failure: Failure | None = None
