"""Cutting videos into scenes with PySceneDetect."""

import itertools
from pathlib import Path
from typing import Literal

from av.video.reformatter import Interpolation

from hvkf.media.errors import MediaFault
from hvkf.media.frames import pixels
from hvkf.media.pipeline import frames_to_show
from hvkf.records import Reading

DETECTION_SIDE = 256
"""Scenes are detected on frames of about this many pixels, which is PySceneDetect's own default."""
SMALL = Interpolation.AREA | Interpolation.BITEXACT


def split_scenes(
    path: str | Path,
    *,
    detector: Literal["content", "adaptive"] = "content",
    threshold: float | None = None,
    min_scene_frames: int = 15,
    reading: Reading | None = None,
) -> list[tuple[int, int]]:
    """Cut a video into scenes with a detector of PySceneDetect, fed with every frame.

    `threshold` defaults to the detector's own (27 and 3). A cut that comes less than
    `min_scene_frames` after the one before it is not made, so only the last scene may be shorter.

    Args:
        path: The file.
        detector: Which of the two.
        threshold: How much must change at a cut.
        min_scene_frames: Frames between two cuts, at least.
        reading: How its pictures are read, by `probe`; None to go by the first frame.

    Returns:
        (start, end) frame indices, end excluded: without gaps, from 0 to the number of frames.

    Raises:
        MediaFault: the file cannot be decoded from its first to its last frame.
    """
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    cutter: ContentDetector
    if detector == "adaptive":
        cutter = AdaptiveDetector(threshold or 3.0, min_scene_len=min_scene_frames)
    else:
        cutter = ContentDetector(threshold or 27.0, min_scene_len=min_scene_frames)
    path = Path(path)
    cuts: set[int] = set()
    num_frames = 0
    with frames_to_show(path, reading) as shown:
        for frame in shown.frames:
            shrink = max(1.0, max(frame.width, frame.height) / DETECTION_SIDE)
            size = (max(1, round(frame.width / shrink)), max(1, round(frame.height / shrink)))
            small = shown.converter.shown(frame, size, "bgr24", SMALL)
            # Lengths are given in frames, so any rate does.
            place = FrameTimecode(num_frames, fps=25.0)
            cuts.update(cut.frame_num for cut in cutter.process_frame(place, pixels(small)))
            num_frames += 1
    if num_frames == 0:
        raise MediaFault("empty", f"{path.name} has a video stream without a single frame")
    borders = [0, *sorted(cuts - {0}), num_frames]
    return list(itertools.pairwise(borders))
