"""Which of a file's video tracks is read: the default one, then the largest, then the first."""

from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from hvkf.media.errors import MediaFault
from hvkf.media.opening import opened
from hvkf.records import Note

NO_VIDEOS = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
MAX_PIXELS = 2**26
"""Of a stored picture: 8192x8192, which is 200 MB of RGB."""


class Track(NamedTuple):
    """A video track; `number` counts those that are no covers, from 0."""

    stream: VideoStream
    number: int
    note: Note | None = None


def choose_track(container: InputContainer, path: Path) -> Track:
    """Choose the track to read, and say so in `note` where there was a choice.

    Raises:
        MediaFault: there is none, or it cannot be decoded here.
    """
    tracks = _tracks(container)
    moving = [track for track in tracks if not track.stream.disposition & NO_VIDEOS]
    if len(moving) > 1:
        pictures = _count_pictures(path, [track.number for track in moving])
        moving = [track for track in moving if pictures[track.number] > 1]
    if not moving:
        raise MediaFault(
            "no-video-stream",
            f"{path.name} has no video stream, only sound, a cover or single pictures; remove its "
            "row",
        )
    chosen = min(moving, key=_rank)
    note = None
    if len(tracks) > 1:
        is_default = chosen.stream.disposition & Disposition.default
        why = "the default one" if is_default else "the largest"
        why = why if len(moving) > 1 else "the only one of more than a picture"
        message = f"it has {len(tracks)} video tracks: number {chosen.number + 1} is read, {why}"
        note = Note(code="tracks", message=message)
    return _checked(chosen._replace(note=note), path.name)


def track_number(container: InputContainer, number: int, path: Path) -> Track:
    """Give the track that was chosen before; raises MediaFault when it is not there."""
    tracks = _tracks(container)
    if number >= len(tracks):
        raise MediaFault("no-video-stream", f"{path.name} has no video track {number + 1}")
    return _checked(tracks[number], path.name)


def _tracks(container: InputContainer) -> list[Track]:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return [Track(stream, number) for number, stream in enumerate(streams)]


def _rank(track: Track) -> tuple[bool, int, int]:
    context = track.stream.codec_context
    size = context.width * context.height if context is not None else 0
    return not track.stream.disposition & Disposition.default, -size, track.number


def _count_pictures(path: Path, numbers: list[int]) -> dict[int, int]:
    """Count the packets of the tracks, as far as it takes to know which have more than one."""
    found = dict.fromkeys(numbers, 0)
    with opened(path) as container:
        tracks = [track for track in _tracks(container) if track.number in found]
        by_index = {track.stream.index: track.number for track in tracks}
        try:
            for packet in container.demux(*(track.stream for track in tracks)):
                found[by_index[packet.stream.index]] += packet.size > 0
                if min(found.values()) > 1:
                    break
        except av.FFmpegError:
            pass  # what comes behind the damage cannot be counted; decoding tells of it
    return found


def _checked(track: Track, name: str) -> Track:
    context = track.stream.codec_context
    if context is None:
        raise MediaFault(
            "unreadable", f"{name} is in a codec that has no decoder here; convert it to H.264"
        )
    if context.width < 1 or context.height < 1:
        raise MediaFault("zero-size", f"{name} has pictures without pixels; remove its row")
    check_size(context.width, context.height, name)
    # Workers are the parallelism: more threads a video would only multiply them.
    context.thread_count = 1
    return track


def check_size(width: int, height: int, name: str) -> None:
    """Refuse pictures that would take gigabytes; raises MediaFault."""
    if width * height > MAX_PIXELS:
        raise MediaFault(
            "too-large",
            f"{name} has pictures of {width}x{height} pixels, more than {MAX_PIXELS}; scale it "
            "down",
        )
