"""HDR and wide gamuts become BT.709 by their light; expected values follow from the standards."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from hvkf.media.errors import MediaFault
from hvkf.media.reading import Choices
from hvkf.records import Reading
from hvkf.video import decode_frames, probe
from tests.videos import BT709, Tags, encode_tagged, noise

FROM_BT709 = np.array(  # linear BT.709 to linear BT.2020 (ITU-R BT.2087)
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
PATCHES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0.2, 0.2, 0.2], [0, 0, 0]])
PQ, HLG, BT2020_10 = 16, 18, 14


def pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Encode light by SMPTE ST 2084."""
    root = (nits / 10000) ** 0.1593017578125
    coded: NDArray[np.float64] = (
        (0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)
    ) ** 78.84375
    return coded


def hlg(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Encode what a screen of 1000 nits shows by BT.2100's HLG: inverse OOTF, then OETF."""
    shown = nits / 1000
    luminance = shown @ np.array([0.2627, 0.6780, 0.0593])
    scene = shown * np.maximum(luminance, 1e-12)[:, None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    coded: NDArray[np.float64] = np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        a * np.log(np.maximum(12 * scene - b, 1e-12)) + c,
    )
    return coded


def write(path: Path, coded: NDArray[np.float64], tags: Tags) -> Path:
    """Write patches of RGB code values from 0 to 1, side by side, as 10-bit YUV of BT.2020."""
    row = np.repeat(np.round(coded * 65535).astype(np.uint16), 8, axis=0)
    picture = np.ascontiguousarray(np.broadcast_to(row, (16, *row.shape)))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=24)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_range = tags.matrix, tags.range
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, "gbrp16le").reformat(
                format="yuv444p10le",
                dst_colorspace=Colorspace.BT2020,
                dst_color_range=ColorRange.MPEG,
            )
            frame.colorspace, frame.color_range = tags.matrix, tags.range
            frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(path: Path, reading: Reading | None) -> NDArray[np.int64]:
    ((_, pixels),) = decode_frames(path, [1], reading)
    return pixels[8, 4::8].astype(np.int64)


def brought_down(light: float) -> int:
    """Mobius from 0.3 on, with a peak of 1000 cd/m², and BT.1886; the white is 203 cd/m²."""
    knee, peak = 0.3, 1000 / 203
    if light > knee:
        a = -(knee**2) * (peak - 1) / (knee**2 - 2 * knee + peak)
        b = (knee**2 - 2 * knee * peak + peak) / (peak - 1)
        light = (b**2 + 2 * b * knee + knee**2) / (b - a) * (light + a) / (light + b)
    level: float = 255 * light ** (1 / 2.4)
    return round(level)


@pytest.mark.parametrize(
    ("transfer", "encode_light", "white"),
    # In HLG no single primary is as bright as the white of 1000.
    [(PQ, pq, 100), (PQ, pq, 203), (PQ, pq, 1000), (HLG, hlg, 100), (HLG, hlg, 203)],
)
def test_hdr_is_tone_mapped_and_keeps_its_hues(
    tmp_path: Path, transfer: int, encode_light: Any, white: float
) -> None:
    light = PATCHES * white @ FROM_BT709.T
    path = write(tmp_path / "a.mkv", encode_light(light), Tags(9, 1, 9, transfer))
    info = probe(path)
    assert info.reading.transfer == ("pq" if transfer == PQ else "hlg")
    assert info.reading.primaries == "bt2020"
    assert [note.code for note in info.notes] == ["hdr", "wide-gamut"]
    found = shown(path, info.reading)
    assert np.array_equal(found, shown(path, None))
    full, grey = brought_down(white / 203), brought_down(0.2 * white / 203)
    assert np.abs(found[3] - full).max() <= 2
    assert np.abs(found[4] - grey).max() <= 2
    assert found[5].max() <= 2
    for channel in range(3):
        others = np.delete(found[channel], channel)
        assert abs(found[channel, channel] - full) <= 4
        assert others.max() <= 24  # a level of 10 bits is many of 8 in the dark


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_the_setting_refuses_hdr(tmp_path: Path, transfer: int) -> None:
    path = write(tmp_path / "a.mkv", PATCHES, Tags(9, 1, 9, transfer))
    with pytest.raises(MediaFault, match=r"a\.mkv is HDR .* ingest\.hdr") as caught:
        probe(path, Choices(hdr="refuse"))
    assert caught.value.code == "hdr"


def test_hdr_without_matrix_and_primaries_is_taken_as_bt2020(tmp_path: Path) -> None:
    light = PATCHES * 203 @ FROM_BT709.T
    path = write(tmp_path / "a.mkv", pq(light), Tags(2, 1, 2, PQ))
    info = probe(path)
    assert info.reading == Reading(matrix="bt2020", transfer="pq", primaries="bt2020")
    assert abs(shown(path, info.reading)[0, 0] - brought_down(1.0)) <= 4


def test_the_wide_gamut_of_a_standard_range_video_becomes_bt709s(tmp_path: Path) -> None:
    coded = np.clip(PATCHES @ FROM_BT709.T, 0, 1) ** (1 / 2.4)
    path = write(tmp_path / "a.mkv", coded, Tags(9, 1, 9, BT2020_10))
    info = probe(path)
    assert info.reading == Reading(primaries="bt2020")
    found = shown(path, info.reading)
    expected = np.round(255 * PATCHES ** (1 / 2.4))
    # A level of 10 bits is three of 8 in the dark, where a gamut's matrix subtracts.
    assert np.abs(found - expected)[3:].max() <= 1
    assert np.abs(found - expected)[:3].max() <= 24


def test_display_p3_becomes_bt709s_colours(tmp_path: Path) -> None:
    # What Pillow's colour management makes of it: (60, 200, 60) is out of BT.709 in red.
    frames = np.full((3, 16, 16, 3), (60, 200, 60), np.uint8)
    path = encode_tagged(tmp_path / "a.mkv", frames, tags=Tags(1, 1, 12, 13))
    info = probe(path)
    assert info.reading.primaries == "display-p3"
    ((_, pixels),) = decode_frames(path, [1], info.reading)
    red, green, blue = pixels[8, 8].tolist()
    assert red < 10
    assert abs(green - 203) <= 3
    assert blue < 60


@pytest.mark.parametrize("transfer", [1, 4, 5, 6, 7, 13, 14, 15])
def test_curves_of_standard_range_are_left_as_they_are(tmp_path: Path, transfer: int) -> None:
    path = encode_tagged(tmp_path / "a.mkv", noise(2), tags=BT709._replace(transfer=transfer))
    assert probe(path).reading == Reading()


@pytest.mark.parametrize("transfer", [9, 10, 17])
def test_curves_that_nothing_here_converts_are_refused(tmp_path: Path, transfer: int) -> None:
    path = encode_tagged(tmp_path / "a.mkv", noise(2), tags=BT709._replace(transfer=transfer))
    with pytest.raises(MediaFault, match="transfer curve") as caught:
        probe(path)
    assert caught.value.code == "unknown-colours"


def test_a_large_picture_is_mapped_in_bands_without_seams(tmp_path: Path) -> None:
    coded = np.linspace(0, 1, 40)[:, None].repeat(3, axis=1)
    picture = np.repeat(np.round(coded * 65535).astype(np.uint16)[None], 600, axis=0)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 600, 40, "gbrp16le"
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, PQ
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "gbrp16le")
            frame.color_primaries, frame.color_trc = 9, PQ
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info = probe(path)
    assert info.reading.transfer == "pq"
    ((_, pixels),) = decode_frames(path, [0], info.reading)
    assert np.array_equal(pixels, np.broadcast_to(pixels[0], pixels.shape))
    assert (np.diff(pixels[0, :, 0].astype(int)) >= 0).all()
