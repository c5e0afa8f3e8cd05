"""The records of rendering, and where they lie in the workspace."""

from typing import Literal

from hvkf.manifest import ManifestRow
from hvkf.records import FORMAT_VERSION, Failure, FileEntry, Record

LEDGER = "renders/ledger"
VIDEO_NAME = "video.mp4"
DESCRIPTION_NAME = "video.json"
FIRST_FRAME_NAME = "first.jpg"
LAST_FRAME_NAME = "last.jpg"
LATENTS_NAME = "latents.safetensors"


class Keyframe(Record):
    """An image at a position of the video, by its path and its content.

    `reading` says how its pixels differ from the file's; see `hvkf.keyframe_images.Look`.
    """

    position: int
    path: str
    sha256: str
    reading: str = ""

    @property
    def content(self) -> str:
        """What names the pixels that are rendered from."""
        return f"{self.sha256}+{self.reading}" if self.reading else self.sha256


class RenderTask(Record):
    """A row to render, its images, its LoRA's key in the plan, and what names its result.

    `notes` says what the user should know of the row, such as that its prompt is cut.
    """

    row: ManifestRow
    keyframes: tuple[Keyframe, ...]
    lora: str
    identity: str
    notes: str = ""


class Fidelity(Record):
    """How near frames are to others; `mse` is of values in [0, 1]."""

    mse: float
    psnr_db: float
    ssim: float


class InnerFidelity(Record):
    """How near a frame between the ends is to its keyframe."""

    position: int
    fidelity: Fidelity


class Checks(Record):
    """What a video looks like as a whole; see `hvkf.stages.render_checks`."""

    keyframe_psnr_db: float
    end_jump: float
    colour_drift: float
    freeze: float


class RenderRecord(Record):
    """The ledger's word on a row: its files, or why it cannot be rendered; put last, once."""

    format_version: int = FORMAT_VERSION
    identity: str
    files: tuple[FileEntry, ...] = ()
    first_frame: Fidelity | None = None
    last_frame: Fidelity | None = None
    inner_frames: tuple[InnerFidelity, ...] = ()
    checks: Checks | None = None
    failure: Failure | None = None
    attempt: str


class ManifestRecord(Record):
    """The word that a manifest is done; put last.

    `files` are its planned rows, results and gallery; older records lack them.
    """

    format_version: int = FORMAT_VERSION
    num_rows: int
    num_failed: int
    num_marked: int = 0
    results: str
    gallery: str
    files: tuple[FileEntry, ...] = ()


class ResultRow(Record):
    """A row of results.parquet; paths are relative to the workspace.

    `marks` names the checks that the video does not keep to; `tries` the identities of all seeds
    that were tried; `begun_s` is in seconds since 1970.
    """

    row: int
    id: str
    state: Literal["rendered", "failed"]
    code: str
    message: str
    notes: str
    marks: str
    identity: str
    tries: str
    video: str
    first_frame: str
    last_frame: str
    keyframes: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance: float
    true_cfg_scale: float
    seed: int
    lora: str
    tags: str
    begun_s: float | None
    seconds: float | None
    first_frame_psnr_db: float | None
    last_frame_psnr_db: float | None
    keyframe_psnr_db: float | None
    end_jump: float | None
    colour_drift: float | None
    freeze: float | None


def render_folder(identity: str) -> str:
    """Where a row's video lies."""
    return f"renders/{identity}"


def picture_name(position: int, num_frames: int) -> str:
    """What the picture of a keyframe is called beside its video."""
    ends = {0: FIRST_FRAME_NAME, num_frames - 1: LAST_FRAME_NAME}
    return ends.get(position, f"frame-{position:04d}.jpg")


def record_path(identity: str) -> str:
    """Where the record of a row lies; all of them in one folder, to be listed at once."""
    return f"{LEDGER}/{identity}.json"


def manifest_folder(plan_digest: str) -> str:
    """Where a manifest's rows, results and gallery lie."""
    return f"manifests/{plan_digest}"


def row_failure(row: ManifestRow, code: str, message: str) -> Failure:
    """Describe why a row cannot be rendered."""
    return Failure(code=code, message=message, source=f"row {row.row} ({row.id})")
