"""Decoding a track's frames, and converting them to the RGB that people see."""

from collections.abc import Iterator

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from hvkf.media.alpha import alpha_of, over_white
from hvkf.media.colours import source_colorspace
from hvkf.media.errors import MediaFault
from hvkf.media.light import LightMapper
from hvkf.media.reading import displayed_size
from hvkf.media.tracks import check_size
from hvkf.records import Reading

# With these swscale differs from exact arithmetic by rounding alone. On a frame of bigbuckbunny.mp4
# PyAV's default is off by one level on average and by 55 at edges, at twice the speed.
EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
STRETCHED = (EXACT & ~Interpolation.BILINEAR) | Interpolation.BICUBIC


def decoded(
    container: InputContainer, stream: VideoStream, name: str, decoder: str = ""
) -> Iterator[VideoFrame]:
    """Yield every frame in presentation order, as it was stored.

    A decoder hides damage by making pixels up and flags the frame: such frames are errors, too.

    Raises:
        MediaFault: at the first damaged frame.
    """
    size: tuple[int, int] | None = None
    index = 0
    frames = _decoded_by(decoder, container, stream) if decoder else container.decode(stream)
    try:
        for index, frame in enumerate(frames):
            if frame.is_corrupt:
                raise MediaFault("corrupt", f"{name} is damaged at frame {index}; replace it")
            if size is None:
                check_size(frame.width, frame.height, name)
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


def _decoded_by(
    decoder: str, container: InputContainer, stream: VideoStream
) -> Iterator[VideoFrame]:
    context = CodecContext.create(decoder, "r")
    assert isinstance(context, VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    context.thread_count = 1
    for packet in container.demux(stream):
        yield from context.decode(packet if packet.size else None)


class Converter:
    """Turns frames of one video into RGB at the size at which they are shown, yet unturned."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._reformatter = VideoReformatter()
        self._flattener = VideoReformatter()
        is_mapped = reading.transfer or reading.primaries
        self._light = LightMapper(reading, EXACT) if is_mapped else None

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert a frame to uint8 RGB [H, W, 3]."""
        return pixels(self.shown(frame))

    def shown(
        self,
        frame: VideoFrame,
        size: tuple[int, int] | None = None,
        pixel_format: str = "rgb24",
        interpolation: Interpolation | None = None,
    ) -> VideoFrame:
        """Convert a frame to 8-bit RGB of a size; left out, that at which it is shown."""
        stored = (frame.width, frame.height)
        size = size or displayed_size(*stored, self._reading.aspect)
        interpolation = interpolation or (EXACT if size == stored else STRETCHED)
        colorspace = source_colorspace(self._reading.matrix)
        if self._light is not None or self._reading.alpha:
            # Scaling before would mix what is hidden, or light by its code values.
            frame, colorspace = VideoFrame.from_ndarray(self._flat(frame), format="rgb24"), None
        return self._reformatter.reformat(
            frame,
            *size,
            format=pixel_format,
            src_colorspace=colorspace,
            interpolation=interpolation,
            threads=1,
        )

    def _flat(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Give the stored picture as opaque RGB of BT.709."""
        if self._light is not None:
            rgb = self._light.rgb(frame)
        else:
            rgb = pixels(
                self._flattener.reformat(
                    frame,
                    format="rgb24",
                    src_colorspace=source_colorspace(self._reading.matrix),
                    interpolation=EXACT,
                    threads=1,
                )
            )
        return over_white(rgb, alpha_of(frame)) if self._reading.alpha else rgb


def pixels(frame: VideoFrame) -> NDArray[np.uint8]:
    """Give an RGB frame's pixels [H, W, 3]."""
    return frame.to_ndarray().astype(np.uint8, copy=False)
