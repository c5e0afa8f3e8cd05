"""Reads videos frame by frame with PyAV, finds out what is wrong with them, and writes videos.

A frame's index is its place among the frames that decoding gives, in presentation order; nothing
here trusts the container's own count. Frames are turned as their rotation metadata says.
"""

import errno
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from hvkf.containers import what_is_cut_off
from hvkf.errors import BadInput, DiskFull

# Playlists are left out on purpose: they make the decoder open other files.
DEMUXERS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,asf,ogg,mxf,nut,ivf,gif,yuv4mpegpipe,"
    "mp3,wav,flac,aac"
)

# With these swscale differs from exact arithmetic by rounding alone. On a frame of bigbuckbunny.mp4
# PyAV's default is off by one level on average and by 55 at edges, at twice the speed.
EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)

DETECTION_SIDE = 256
"""Scenes are detected on frames of about this many pixels, which is PySceneDetect's own default."""


class MediaFault(BadInput):
    """One video cannot be used; `code` is what its failure is recorded under.

    Codes: `missing`, `empty`, `truncated`, `unreadable`, `corrupt` (decoding fails at a frame),
    `no-video-stream`, `zero-size`, `size-changes`, `too-short` (it lacks a frame asked for).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["MediaFault"], tuple[str, str]]:
        return type(self), (self.code, str(self))


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a whole video showed.

    `width` and `height` are pixels as displayed: turned by 90 degrees where `is_rotated` says that
    the file asks for any turn or mirroring. `fps` is the mean rate; with `is_variable_fps` some
    frame lies more than half a frame away from the place that the mean rate gives it.
    """

    width: int
    height: int
    fps: Fraction
    num_frames: int
    duration_s: float
    codec: str
    is_rotated: bool
    is_variable_fps: bool


@dataclass(frozen=True)
class _Turn:
    """One of the eight ways to lay a picture down: transposed first, then mirrored."""

    is_transposed: bool = False
    is_mirrored_x: bool = False
    is_mirrored_y: bool = False

    def apply(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        turned = frame_HWC.transpose(1, 0, 2) if self.is_transposed else frame_HWC
        turned = turned[:, ::-1] if self.is_mirrored_x else turned
        turned = turned[::-1] if self.is_mirrored_y else turned
        return np.ascontiguousarray(turned)


def probe(path: str | Path) -> VideoInfo:
    """Decode a whole video, without converting its pixels, and say what is in it.

    Raises:
        MediaFault: the file cannot be decoded from its first to its last frame.
    """
    path = Path(path)
    turn = _Turn()
    size = (0, 0)
    times_s: list[float | None] = []
    with _opened(path) as (container, stream):
        for frame in _decoded(container, stream, path.name):
            if not times_s:
                turn = _turn(frame)
                size = (frame.width, frame.height)
            times_s.append(frame.time)
        declared = stream.average_rate or stream.guessed_rate
        codec = stream.codec_context.name
    if not times_s:
        raise MediaFault("empty", f"{path.name} has a video stream without a single frame")
    fps, is_variable = _frame_rate(times_s, declared)
    width, height = reversed(size) if turn.is_transposed else size
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        num_frames=len(times_s),
        duration_s=float(len(times_s) / fps),
        codec=codec,
        is_rotated=turn != _Turn(),
        is_variable_fps=is_variable,
    )


def decode_frames(
    path: str | Path, indices: Iterable[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Decode straight through once and yield each wanted frame as (index, uint8 RGB HWC).

    Indices come out ascending and once each, whatever their order; only wanted frames are converted
    and only one is held. Decoding ends with the last of them.

    Raises:
        MediaFault: a frame up to the last wanted one cannot be decoded, or is not there.
        ValueError: an index is negative.
    """
    path = Path(path)
    wanted = sorted(set(indices))
    if wanted and wanted[0] < 0:
        raise ValueError(f"frame indices count from 0, not {wanted[0]}")
    if not wanted:
        return
    remaining = iter(wanted)
    next_wanted = next(remaining)
    turn: _Turn | None = None
    reformatter = VideoReformatter()
    index = -1
    with _opened(path) as (container, stream):
        for index, frame in enumerate(_decoded(container, stream, path.name)):
            turn = turn or _turn(frame)
            if index < next_wanted:
                continue
            rgb = reformatter.reformat(frame, format="rgb24", interpolation=EXACT, threads=1)
            yield index, turn.apply(_pixels(rgb))
            if index == wanted[-1]:
                return
            next_wanted = next(remaining)
    raise MediaFault(
        "too-short", f"{path.name} has {index + 1} frames, so there is no frame {next_wanted}"
    )


def resample_indices(
    num_frames: int, fps: float | Fraction, target_fps: float | Fraction | None
) -> list[int]:
    """List, for each frame at `target_fps`, the source frame nearest to it in time.

    Halves round upwards, in the number of frames too; frames repeat when `target_fps` is higher.
    The identity when `target_fps` is None.
    """
    if target_fps is None:
        return list(range(num_frames))
    step = Fraction(fps) / Fraction(target_fps)  # source frames per frame made
    half = Fraction(1, 2)
    num_made = math.floor(num_frames / step + half)
    return [min(num_frames - 1, math.floor(i * step + half)) for i in range(num_made)]


def split_scenes(
    path: str | Path,
    *,
    detector: Literal["content", "adaptive"] = "content",
    threshold: float | None = None,
    min_scene_frames: int = 15,
) -> list[tuple[int, int]]:
    """Cut a video into scenes with a detector of PySceneDetect, fed with every frame.

    `threshold` defaults to the detector's own (27 and 3). A cut that comes less than
    `min_scene_frames` after the one before it is not made, so only the last scene may be shorter.

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
    reformatter = VideoReformatter()
    cuts: set[int] = set()
    num_frames = 0
    with _opened(path) as (container, stream):
        for frame in _decoded(container, stream, path.name):
            shrink = max(1.0, max(frame.width, frame.height) / DETECTION_SIDE)
            small = reformatter.reformat(
                frame,
                max(1, round(frame.width / shrink)),
                max(1, round(frame.height / shrink)),
                format="bgr24",
                interpolation=Interpolation.AREA | Interpolation.BITEXACT,
                threads=1,
            )
            # Lengths are given in frames, so any rate does.
            place = FrameTimecode(num_frames, fps=25.0)
            cuts.update(cut.frame_num for cut in cutter.process_frame(place, _pixels(small)))
            num_frames += 1
    if num_frames == 0:
        raise MediaFault("empty", f"{path.name} has a video stream without a single frame")
    borders = [0, *sorted(cuts - {0}), num_frames]
    return list(itertools.pairwise(borders))


def write_mp4(
    path: str | Path,
    frames_FHWC: Iterable[NDArray[np.uint8]],
    *,
    fps: int | Fraction = 24,
    crf: int = 18,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames as H.264 (yuv420p, BT.709) in an MP4 that can be played while it loads.

    Equal frames and settings give equal bytes with one build of x264: one thread, no dates.

    Args:
        path: where to write; what is there is replaced.
        frames_FHWC: an array or any iterable of uint8 RGB frames of one size with even sides.
        fps: frames per second.
        crf: x264's constant rate factor; 18 is visually lossless.
        metadata: tags of any names, readable again from the container.

    Raises:
        BadInput: there is no frame, or a side is odd.
        DiskFull: there is no room.
    """
    frames = iter(frames_FHWC)
    first = next(frames, None)
    if first is None:
        raise BadInput(f"There are no frames to write to {path}: give at least one.")
    height, width = first.shape[:2]
    if width % 2 or height % 2:
        raise BadInput(f"H.264 needs even sides, not {width}x{height}: cut or pad the frames.")
    with (
        _room_for(path),
        av.open(
            f"file:{path}",
            "w",
            format="mp4",
            options={"fflags": "+bitexact", "movflags": "+faststart+use_metadata_tags"},
        ) as container,
    ):
        container.metadata.update(metadata or {})
        # x264's vectorised macroblock tree reads past small frames: bytes would vary by chance.
        options = {"crf": str(crf), "preset": "medium", "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        encoder = stream.codec_context
        encoder.thread_count = 1
        encoder.flags |= Flags.bitexact
        encoder.colorspace = Colorspace.ITU709
        encoder.color_range = ColorRange.MPEG
        encoder.color_primaries = ColorPrimaries.BT709
        encoder.color_trc = ColorTrc.BT709
        for frame_HWC in itertools.chain([first], frames):
            container.mux(stream.encode(_yuv(frame_HWC, width, height)))
        container.mux(stream.encode(None))


def write_png(path: str | Path, frame_HWC: NDArray[np.uint8]) -> None:
    """Write one uint8 RGB frame as a PNG; equal frames give equal bytes. Raises DiskFull."""
    with _room_for(path):
        Image.fromarray(np.ascontiguousarray(frame_HWC)).save(path, format="PNG", compress_level=6)


@contextmanager
def _room_for(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(f"There is no room to write {path}: free some space.") from fault


def _yuv(frame_HWC: NDArray[np.uint8], width: int, height: int) -> VideoFrame:
    if frame_HWC.shape != (height, width, 3):
        raise ValueError(f"a frame of shape {frame_HWC.shape} in a video of {width}x{height}")
    rgb = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    return rgb.reformat(
        format="yuv420p",
        interpolation=EXACT,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and find its video stream; raises MediaFault when there is none."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            lacking = what_is_cut_off(file, size)
    except FileNotFoundError:
        raise MediaFault("missing", f"there is no file {path.name}") from None
    except OSError as fault:
        raise MediaFault("unreadable", f"{path.name} cannot be read: {fault.strerror}") from fault
    if size == 0:
        raise MediaFault("empty", f"{path.name} is an empty file; copy it again or remove its row")
    if lacking is not None:
        raise MediaFault("truncated", f"{path.name} is cut off: {lacking}; copy it again")
    try:
        container = av.open(
            f"file:{path}",
            metadata_errors="ignore",
            container_options={"format_whitelist": DEMUXERS},
        )
    except av.FFmpegError as fault:
        raise MediaFault(
            "unreadable",
            f"{path.name} is not a video that can be opened ({fault.strerror}); replace it or "
            f"remove its row",
        ) from fault
    with container:
        yield container, _video_stream(container, path.name)


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaFault(
            "no-video-stream", f"{name} has no video stream, only sound or a cover; remove its row"
        )
    stream = streams[0]
    if stream.codec_context is None:
        raise MediaFault(
            "unreadable", f"{name} is in a codec that has no decoder here; convert it to H.264"
        )
    if stream.codec_context.width < 1 or stream.codec_context.height < 1:
        raise MediaFault("zero-size", f"{name} has pictures without pixels; remove its row")
    # Workers are the parallelism: more threads a video would only multiply them.
    stream.codec_context.thread_count = 1
    return stream


def _decoded(container: InputContainer, stream: VideoStream, name: str) -> Iterator[VideoFrame]:
    """Yield every frame in presentation order; raises MediaFault at the first damaged one.

    A decoder hides damage by making pixels up and flags the frame: such frames are faults, too.
    """
    size: tuple[int, int] | None = None
    index = 0
    try:
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise MediaFault("corrupt", f"{name} is damaged at frame {index}; replace it")
            size = size or (frame.width, frame.height)
            if size != (frame.width, frame.height):
                raise MediaFault(
                    "size-changes",
                    f"{name} changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} "
                    f"pixels at frame {index}; cut it there",
                )
            yield frame
    except av.FFmpegError as fault:
        raise MediaFault(
            "corrupt", f"{name} cannot be decoded near frame {index} ({fault.strerror}); replace it"
        ) from fault


def _pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    return frame.to_ndarray().astype(np.uint8, copy=False)


def _turn(frame: VideoFrame) -> _Turn:
    """Read the display matrix [a b u; c d v; x y w], which sends (p, q) to (ap + cq, bp + dq)."""
    side_data: Any = frame.side_data  # PyAV's types call it a dict of motion vectors
    matrices = [data for data in side_data if data.type is SideDataType.DISPLAYMATRIX]
    if not matrices:
        return _Turn()
    a, b, _, c, d = np.frombuffer(bytes(matrices[0]), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return _Turn(is_transposed=True, is_mirrored_x=c < 0, is_mirrored_y=b < 0)
    return _Turn(is_mirrored_x=a < 0, is_mirrored_y=d < 0)


def _frame_rate(times_s: list[float | None], declared: Fraction | None) -> tuple[Fraction, bool]:
    """Give the mean frame rate, and whether frames depart from it by more than half a frame."""
    known = [time_s for time_s in times_s if time_s is not None]
    span_s = known[-1] - known[0] if len(known) == len(times_s) else 0.0
    if span_s <= 0:
        return declared or Fraction(25), False  # 25 is what libav assumes of streams without times
    measured = (len(known) - 1) / span_s
    is_plausible = declared is not None and abs(float(declared) / measured - 1) < 0.01
    fps = declared if declared and is_plausible else Fraction(measured).limit_denominator(1001)
    places = ((time_s - known[0]) * float(fps) for time_s in known)
    return fps, any(abs(place - index) > 0.5 for index, place in enumerate(places))
