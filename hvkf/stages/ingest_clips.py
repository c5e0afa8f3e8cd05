"""The clips of a source video: its scenes, resampled by rate or by timestamps."""

from collections.abc import Iterator

from hvkf.media.timing import resample_indices, resample_times
from hvkf.records import Clip, digest
from hvkf.stages.ingest_records import VideoScan
from hvkf.tables import TableRow


def clips_of(
    row: TableRow, scan: VideoScan, split: str, target_fps: float | None
) -> Iterator[Clip]:
    """Make the clips of a video, one for each scene.

    Args:
        row: Of the table, which names the video and its caption.
        scan: What looking at the video found.
        split: Which side the video is on.
        target_fps: The rate to resample to; None keeps the frames.
    """
    fps = target_fps or scan.fps
    for start, end in scan.cuts:
        frames: tuple[int, ...] = ()
        duration_s = (end - start) / scan.fps
        num_frames = end - start
        if scan.times_s:
            ends = (*scan.times_s, scan.duration_s)
            duration_s = ends[end] - ends[start]
            if target_fps is not None:
                frames = tuple(resample_times(scan.times_s[start:end], duration_s, target_fps))
                num_frames = len(frames)
        elif target_fps is not None:
            num_frames = len(resample_indices(end - start, scan.fps, target_fps))
        clip = Clip.model_validate(
            {
                "clip_id": "",
                "source": row.video,
                "source_sha256": scan.sha256,
                "caption": row.caption,
                "start": start,
                "end": end,
                "source_frames": scan.num_frames,
                "source_fps": scan.fps,
                "num_frames": num_frames,
                "fps": fps,
                "width": scan.width,
                "height": scan.height,
                "duration_s": duration_s,
                "split": split,
                "is_variable_fps": bool(scan.times_s),
                "frames": frames,
                "reading": scan.reading,
                "notes": "; ".join(note.message for note in scan.notes),
            }
        )
        identity = [scan.sha256, start, end, fps, *clip.reading_identity]
        yield clip.model_copy(update={"clip_id": digest(identity)})
