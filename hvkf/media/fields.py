"""Interlaced video: finding it, telling it from progressive frames, and making it frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import av
from av.filter import Graph
from av.video.frame import VideoFrame

FieldOrder = Literal["", "tff", "bff"]
# AVFieldOrder: the field that is *shown* first counts, not the one that is stored first.
ORDERS: dict[int, FieldOrder] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
MAX_COMBED_OF_PROGRESSIVE = 0.05
"""Up to this share of progressive frames is taken for combed by the detector (noise, stripes)."""


def declared_order(field_order: int) -> FieldOrder:
    """Name the order of fields that a container declares; empty when it is progressive."""
    return ORDERS.get(field_order, "")


def filtered(frames: Iterable[VideoFrame], name: str, options: str) -> Iterator[VideoFrame]:
    """Send frames of one size and format through a filter of libavfilter, one thread."""
    graph: Graph | None = None
    for frame in frames:
        graph = graph or _graph(frame, name, options)
        graph.push(frame)
        yield from _ready(graph)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph)


def _graph(frame: VideoFrame, name: str, options: str) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base or "1/25"),
        pixel_aspect="1/1",
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    graph.link_nodes(source, graph.add(name, options or None), graph.add("buffersink"))
    graph.configure()
    return graph


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def deinterlaced(frames: Iterable[VideoFrame], fields: str) -> Iterator[VideoFrame]:
    """Make a frame of each pair of fields (bwdif); progressive frames pass as they are.

    Args:
        frames: of one size and format.
        fields: as in `Reading.fields`.
    """
    which = "parity=auto:deint=interlaced" if fields == "flagged" else f"parity={fields}:deint=all"
    return filtered(frames, "bwdif", f"mode=send_frame:{which}")


@dataclass
class FieldsSeen:
    """What the frames of a track show of fields; the detector sees those from the first flag on."""

    num_flagged: int = 0
    _detector: Graph | None = field(default=None, repr=False)
    _counts: dict[str, float] = field(default_factory=dict)

    def add(self, frame: VideoFrame, *, is_declared: bool) -> None:
        """Look at the next frame."""
        self.num_flagged += frame.interlaced_frame
        if self._detector is None:
            if not is_declared and not self.num_flagged:
                return
            self._detector = _graph(frame, "idet", "")
        self._detector.push(frame)
        self._count()

    def is_woven(self) -> bool:
        """Whether frames show two fields of different times, when all have been seen.

        Where nothing moves the detector cannot tell, and the flags are believed.
        """
        if self._detector is not None:
            self._detector.push(None)
            self._count()
            self._detector = None
        combed = self._counts.get("tff", 0.0) + self._counts.get("bff", 0.0)
        progressive = self._counts.get("progressive", 0.0)
        return combed > MAX_COMBED_OF_PROGRESSIVE * progressive or progressive == 0

    def _count(self) -> None:
        assert self._detector is not None
        for frame in _ready(self._detector):
            for kind in ("tff", "bff", "progressive"):
                self._counts[kind] = float(frame.metadata[f"lavfi.idet.multiple.{kind}"])
