"""From high dynamic range and wide gamuts to BT.709: by light, not by code values.

Code values become light by the curves of ITU-R BT.2100 (PQ, HLG) or BT.1886, primaries are
converted by their matrix, libav's `tonemap` filter (Mobius) brings highlights down, and BT.1886
makes code values again. A diffuse white of 203 cd/m² (ITU-R BT.2408) is SDR's 100%.
"""

from functools import cache
from typing import Any

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from hvkf.media.colours import source_colorspace
from hvkf.records import Reading

Light = NDArray[np.float32]

REFERENCE_WHITE = 203.0
PEAK = 1000.0
"""cd/m²: what most HDR is made for, and HLG's nominal peak. What is brighter is cut."""
SDR_GAMMA = 2.4
HLG_SYSTEM_GAMMA = 1.2
LEVELS = 2**16
BAND_ROWS = 256
# From each gamut's linear RGB to BT.709's (ITU-R BT.2087; P3 by its primaries, DCI's white adapted
# by Bradford's matrix).
TO_BT709 = {
    "bt2020": (
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    "display-p3": (
        (1.224940, -0.224940, 0.0),
        (-0.042057, 1.042057, 0.0),
        (-0.019638, -0.078636, 1.098274),
    ),
    "dci-p3": (
        (1.157517, -0.154962, -0.002554),
        (-0.041501, 1.045568, -0.004067),
        (-0.018050, -0.078575, 1.096625),
    ),
}
LUMINANCE_BT2020 = (0.2627, 0.6780, 0.0593)


class LightMapper:
    """Turns frames of one video, which is HDR or of a wide gamut, into BT.709's RGB."""

    def __init__(self, reading: Reading, interpolation: Interpolation) -> None:
        self._reading = reading
        self._interpolation = interpolation
        self._reformatter = VideoReformatter()
        self._tonemaps: dict[tuple[int, int], Graph] = {}

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert a frame to uint8 RGB [H, W, 3]."""
        codes_HWC = _array(
            self._reformatter.reformat(
                frame,
                format="gbrp16le",
                src_colorspace=source_colorspace(self._reading.matrix),
                interpolation=self._interpolation,
                threads=1,
            )
        )
        rgb_HWC = np.empty(codes_HWC.shape, np.uint8)
        # In bands: the light of a large picture would take a gigabyte.
        for top in range(0, len(codes_HWC), BAND_ROWS):
            rgb_HWC[top : top + BAND_ROWS] = self._mapped(codes_HWC[top : top + BAND_ROWS])
        return rgb_HWC

    def _mapped(self, codes_HWC: NDArray[np.uint16]) -> NDArray[np.uint8]:
        light = _to_light(self._reading.transfer)[codes_HWC]
        if self._reading.transfer == "hlg":
            light = _hlg_on_screen(light)
        if self._reading.primaries:
            light = _converted(light, self._reading.primaries)
        if self._reading.transfer in ("pq", "hlg"):
            light = self._brought_down(light)
        # By its root, which keeps steps in the dark finer than those of 8 bits.
        steps = np.sqrt(np.clip(light, 0, 1)) * np.float32(LEVELS - 1) + np.float32(0.5)
        return _to_codes()[steps.astype(np.uint16)]

    def _brought_down(self, light_HWC: Light) -> Light:
        """Bring 0 to PEAK, in units of the reference white, into 0 to 1."""
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(light_HWC), format="gbrpf32le")
        size = (frame.width, frame.height)
        if size not in self._tonemaps:
            self._tonemaps[size] = _tonemap_graph(*size)
        self._tonemaps[size].push(frame)
        brought_down: Light = _array(self._tonemaps[size].vpull())
        return brought_down


def _array(frame: VideoFrame) -> Any:
    return frame.to_ndarray()


def _tonemap_graph(width: int, height: int) -> Graph:
    graph = Graph()
    graph.threads = 1
    nodes = [
        graph.add(
            "buffer",
            video_size=f"{width}x{height}",
            pix_fmt="gbrpf32le",
            time_base="1/25",
            pixel_aspect="1/1",
            colorspace="0",
            range="2",
        ),
        graph.add("tonemap", f"tonemap=mobius:desat=0:peak={PEAK / REFERENCE_WHITE}"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


@cache
def _to_light(transfer: str) -> Light:
    """Tabulate the light of each 16-bit code value, in units of the reference white."""
    code = np.arange(LEVELS) / (LEVELS - 1)
    if transfer == "pq":
        root = code ** (1 / 78.84375)
        nits = 10000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (
            1 / 0.1593017578125
        )
        light = nits / REFERENCE_WHITE
    elif transfer == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    elif transfer == "linear":
        light = code
    else:
        light = code**SDR_GAMMA
    as_floats: Light = light.astype(np.float32)
    return as_floats


@cache
def _to_codes() -> NDArray[np.uint8]:
    """Tabulate the 8-bit code value of each of 65536 steps of light's square root."""
    light = (np.arange(LEVELS) / (LEVELS - 1)) ** 2
    codes: NDArray[np.uint8] = np.floor(light ** (1 / SDR_GAMMA) * 255 + 0.5).astype(np.uint8)
    return codes


def _hlg_on_screen(scene_HWC: Light) -> Light:
    """Show a scene's light on a screen of PEAK (BT.2100's OOTF), in units of the white."""
    luminance = scene_HWC @ np.array(LUMINANCE_BT2020, np.float32)
    gain = np.maximum(luminance, np.float32(1e-9)) ** np.float32(HLG_SYSTEM_GAMMA - 1)
    return scene_HWC * (gain * np.float32(PEAK / REFERENCE_WHITE))[..., None]


def _converted(light_HWC: Light, primaries: str) -> Light:
    """Convert to BT.709's primaries; what they cannot show is cut to their nearest."""
    matrix = np.array(TO_BT709[primaries], np.float32)
    return np.maximum(light_HWC @ matrix.T, 0)
