"""The records of an evaluation, and where they lie in the workspace."""

from typing import NamedTuple

from pydantic import Field

from hvkf.errors import BadInput
from hvkf.loras import Lora
from hvkf.records import FORMAT_VERSION, Failure, FileEntry, Record
from hvkf.stages.evaluate_statistics import Interval
from hvkf.stages.render_records import Fidelity
from hvkf.storage import Store
from hvkf.stored import read_record

LORA_VIDEO, BASE_VIDEO, TRUTH_VIDEO = "lora.mp4", "base.mp4", "truth.mp4"
FIRST_FRAME, LAST_FRAME = "first.png", "last.png"


class PairTask(Record):
    """A held-out sample to render between its own first and last frame, and where it lies."""

    key: str
    bucket: str
    source_sha256: str
    segment: str
    position: int


class Motion(Record):
    """How a video goes from frame to frame; measured on itself, so compare with the truth's.

    `flicker` is the mean absolute difference of neighbours in levels of 255 (VBench's temporal
    flickering, Huang et al. 2024, before it is made a score); `flow_warp` the mean squared error in
    [0, 1] of each frame against the next one warped back; `end_jump` the step into the last frame
    as a multiple of the median step; `colour_drift` the furthest that a frame's mean colour is from
    the line between its keyframes', in levels; `freeze` the share of the steps that the longest
    still stretch has; `cross_fade` the share of what lies between the ends that a blend of them
    explains.
    """

    flicker: float
    flow_warp: float
    end_jump: float
    colour_drift: float
    freeze: float
    cross_fade: float


class ClipFidelity(Record):
    """How near a video is to the truth: its ends to the keyframes, all of it to the clip.

    Evaluations of stage version 1 have no `ms_ssim`.
    """

    first: Fidelity
    last: Fidelity
    clip: Fidelity
    ms_ssim: float | None = None
    extras: dict[str, float] = Field(default_factory=dict)


class PairRecord(Record):
    """The ledger's word on one rendering of a pair; put last, once.

    `made` is None where `failure` says why. What is rendered without a LoRA also has what depends
    on no LoRA: the `ceiling`, the true clip behind the VAE alone, which no sampler can be expected
    to surpass by much; the trivial answers `freeze` (the first frame stays) and `cross_fade`; and
    the truth's own motion.
    """

    format_version: int = FORMAT_VERSION
    key: str
    bucket: str
    source: str
    prompt: str
    fps: float
    made: ClipFidelity | None
    motion: Motion | None = None
    ceiling: ClipFidelity | None = None
    freeze: ClipFidelity | None = None
    cross_fade: ClipFidelity | None = None
    truth_motion: Motion | None = None
    features: tuple[float, ...] = ()
    truth_features: tuple[float, ...] = ()
    files: tuple[FileEntry, ...]
    failure: Failure | None = None
    attempt: str


class Evaluation(Record):
    """What one evaluation is of: the LoRA, the scenes, and where its two kinds of results lie.

    The pairs `apart` are rendered and shown, and count in no figure.
    """

    lora: Lora
    scenes: str
    root: str
    base_root: str
    pairs: tuple[PairTask, ...]
    apart: tuple[PairTask, ...] = ()

    @property
    def rendered(self) -> tuple[PairTask, ...]:
        """Those that count, and those that are only shown."""
        return self.pairs + self.apart


class Settings(Record):
    """How the pairs were rendered."""

    steps: int
    guidance: float
    seed: int
    precision: str
    models: str
    extras: tuple[str, ...] = ()


class PairMetrics(Record):
    """One pair's figures; `files` names its pictures and videos by their paths."""

    key: str
    bucket: str
    source: str
    source_sha256: str = ""
    prompt: str
    lora: ClipFidelity
    base: ClipFidelity
    ceiling: ClipFidelity
    freeze: ClipFidelity | None = None
    cross_fade: ClipFidelity | None = None
    lora_motion: Motion | None = None
    base_motion: Motion | None = None
    truth_motion: Motion | None = None
    files: dict[str, str]


class Mean(Record):
    """Over pairs: mean PSNR and SSIM, and the PSNR of the mean squared error."""

    psnr_db: float
    pooled_psnr_db: float
    ssim: float


class Means(Record):
    """Means of the first frame, the last frame and the whole clip."""

    first: Mean
    last: Mean
    clip: Mean
    ms_ssim: float | None = None
    extras: dict[str, float] = Field(default_factory=dict)


class Comparison(Record):
    """What the LoRA gained over something else on the same pairs, with its 95% interval."""

    figure: str
    against: str
    gain: Interval


class Metrics(Record):
    """What an evaluation found; its presence says that the evaluation is done.

    `files` is the report beside it; older records lack it.
    """

    format_version: int = FORMAT_VERSION
    run_id: str
    checkpoint: str
    lora_sha256: str
    settings: Settings
    lora: Means
    base: Means
    ceiling: Means
    freeze: Means | None = None
    cross_fade: Means | None = None
    lora_motion: Motion | None = None
    base_motion: Motion | None = None
    truth_motion: Motion | None = None
    comparisons: tuple[Comparison, ...] = ()
    pairs: tuple[PairMetrics, ...]
    apart: tuple[PairMetrics, ...] = ()
    failures: tuple[Failure, ...]
    files: tuple[FileEntry, ...] = ()


def video_of(pair: PairMetrics) -> str:
    """Name a pair's source video: by its content, or its path where an older record lacks that."""
    return pair.source_sha256 or pair.source


def pair_path(root: str, key: str) -> str:
    """Where the record of a pair's rendering lies."""
    return f"{root}/pairs/{key}.json"


def pair_folder(root: str, key: str) -> str:
    """Where a pair's pictures and videos lie."""
    return f"{root}/media/{key}"


def metrics_path(root: str) -> str:
    """Where the metrics of an evaluation lie."""
    return f"{root}/metrics.json"


def find_metrics(store: Store, evaluation: str) -> tuple[str, Metrics]:
    """Read an evaluation's metrics by their path, or by the folder that they lie in.

    Raises:
        BadInput: there is no such evaluation.
    """
    path = evaluation if evaluation.endswith(".json") else metrics_path(evaluation.rstrip("/"))
    try:
        return path, read_record(store, path, Metrics)
    except FileNotFoundError:
        raise BadInput(
            f"There is no evaluation {path} in {store.url}: run `hvkf evaluate`, and give the path "
            "of the metrics.json that it names."
        ) from None


class Rendered(NamedTuple):
    """A pair's renderings without and with the LoRA."""

    base: PairRecord
    lora: PairRecord
