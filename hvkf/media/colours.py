"""Which colours a video's numbers stand for: matrix, range, transfer curve and primaries.

What a file leaves open is taken as mpv and libplacebo take it: BT.709 for pictures at least 1280
wide or over 576 high, BT.601 below, limited range for YUV.
"""

from typing import Literal, NamedTuple

from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from hvkf.media.errors import MediaFault
from hvkf.records import Note

UNKNOWN = (2, 3)
"""AVCOL_*_UNSPECIFIED and the reserved value of matrices, primaries and curves."""
RGB_MATRIX = 0
BT2020_MATRIX = 9
# AVColorSpace: RGB, BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020 (no constant luminance).
KNOWN_MATRICES = (0, 1, 4, 5, 6, 7, BT2020_MATRIX)
HD_WIDTH, SD_HEIGHT = 1280, 576

Matrix = Literal["", "bt601", "bt709", "bt2020"]
Transfer = Literal["", "pq", "hlg", "linear"]
Primaries = Literal["", "bt2020", "dci-p3", "display-p3"]

COLORSPACES = {
    "bt601": Colorspace.ITU601,
    "bt709": Colorspace.ITU709,
    "bt2020": Colorspace.BT2020,
}
TRANSFERS: dict[int, Transfer] = {
    ColorTrc.SMPTE2084: "pq",
    ColorTrc.ARIB_STD_B67: "hlg",
    ColorTrc.LINEAR: "linear",
}
# Curves of no camera or screen; libav reads their numbers as if they were BT.709's.
UNUSABLE_TRANSFERS = (ColorTrc.LOG, ColorTrc.LOG_SQRT, ColorTrc.SMPTE428)
WIDE: dict[int, Primaries] = {
    ColorPrimaries.BT2020: "bt2020",
    ColorPrimaries.SMPTE431: "dci-p3",
    ColorPrimaries.SMPTE432: "display-p3",
}
HDR: dict[str, str] = {"pq": "HDR (PQ)", "hlg": "HDR (HLG)", "linear": "linear light"}
GAMUTS = {"bt2020": "BT.2020", "dci-p3": "DCI-P3", "display-p3": "Display P3"}
MATRICES = {"bt601": "BT.601", "bt709": "BT.709", "bt2020": "BT.2020"}


class Colours(NamedTuple):
    """libav's numbers for what a picture's values mean, and whether they are YUV at all."""

    matrix: int
    range: int
    primaries: int
    transfer: int
    is_yuv: bool

    @classmethod
    def of(cls, frame: VideoFrame, header: tuple[int, int, int, int]) -> "Colours":
        """Read them from a frame, and from the track's header what the frame leaves open."""
        matrix, color_range, primaries, transfer = header
        form = frame.format
        # PyAV calls a part chroma only where it is subsampled.
        num_colours = sum(not part.is_alpha for part in form.components)
        is_coded = form.is_rgb or form.has_palette or form.name.startswith("xyz")
        is_full = form.name.startswith("yuvj")
        return cls(
            matrix=_known(frame.colorspace, matrix),
            range=frame.color_range or color_range or (ColorRange.JPEG if is_full else 0),
            primaries=_known(frame.color_primaries, primaries),
            transfer=_known(frame.color_trc, transfer),
            is_yuv=not is_coded and num_colours >= 3,
        )

    @property
    def is_usable_without_dolby_vision(self) -> bool:
        """Whether Dolby Vision's own data only refine a picture that others can show."""
        return self.matrix in KNOWN_MATRICES and self.transfer not in UNKNOWN


class ChosenColours(NamedTuple):
    """The parts of a `Reading` that concern colours."""

    matrix: Matrix = ""
    transfer: Transfer = ""
    primaries: Primaries = ""


def choose_colours(
    said: Colours,
    width: int,
    height: int,
    pixel_format: str,
    *,
    name: str,
    is_hdr_refused: bool,
) -> tuple[ChosenColours, list[Note]]:
    """Choose how values become colours, with notes for people.

    Args:
        said: What the file says.
        width: Of the stored picture.
        height: Of the stored picture.
        pixel_format: libav's name for it.
        name: Of the file, for errors.
        is_hdr_refused: What to do with HDR, by the settings.

    Raises:
        MediaFault: the matrix or the curve cannot be converted, or HDR is refused.
    """
    transfer = TRANSFERS.get(said.transfer, "")
    if said.transfer in UNUSABLE_TRANSFERS and not pixel_format.startswith("xyz"):
        raise MediaFault(
            "unknown-colours",
            f"{name} has the transfer curve {ColorTrc(said.transfer).name}, which cannot be "
            "converted here; convert it to BT.709",
        )
    if transfer in ("pq", "hlg") and is_hdr_refused:
        raise MediaFault(
            "hdr",
            f"{name} is {HDR[transfer]}; convert it to SDR, or set ingest.hdr to tonemap",
        )
    primaries = WIDE.get(said.primaries, "")
    if transfer in ("pq", "hlg") and said.primaries in UNKNOWN:
        primaries = "bt2020"
    matrix, notes = _choose_matrix(said, width, height, is_wide=primaries == "bt2020", name=name)
    if transfer:
        message = f"it is {HDR[transfer]}: mapped to standard range (BT.709)"
        notes.append(Note(code="hdr", message=message))
    if primaries:
        message = f"its primaries are {GAMUTS[primaries]}'s: colours are converted to BT.709's"
        notes.append(Note(code="wide-gamut", message=message))
    return ChosenColours(matrix, transfer, primaries), notes


def _choose_matrix(
    said: Colours, width: int, height: int, *, is_wide: bool, name: str
) -> tuple[Matrix, list[Note]]:
    if not said.is_yuv:
        return "", []
    lacking = [] if said.range else ["limited range"]
    if said.matrix in KNOWN_MATRICES and said.matrix != RGB_MATRIX:
        return "", _untagged(lacking)
    if said.matrix not in (*UNKNOWN, RGB_MATRIX):
        raise MediaFault(
            "unknown-colours",
            f"{name} has the colour matrix {said.matrix} (ISO/IEC 23091-2), which cannot be "
            "converted here; convert it to BT.709",
        )
    matrix: Matrix = "bt709" if width >= HD_WIDTH or height > SD_HEIGHT else "bt601"
    if is_wide:
        matrix = "bt2020"
    notes = _untagged([MATRICES[matrix], *lacking])
    # libav takes BT.601 where nothing is said: such a video is read as it always was.
    return ("" if matrix == "bt601" and said.matrix in UNKNOWN else matrix), notes


def _untagged(taken: list[str]) -> list[Note]:
    message = f"its colours are not wholly tagged: {', '.join(taken)} taken"
    return [Note(code="untagged", message=message)] if taken else []


def _known(value: int, otherwise: int) -> int:
    return otherwise if value in UNKNOWN else value


def source_colorspace(matrix: Matrix) -> Colorspace | None:
    """The matrix to tell libav, or None where the frame's own tag holds."""
    return COLORSPACES[matrix] if matrix else None
