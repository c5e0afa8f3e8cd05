"""The records that stages hand to each other through the workspace: frozen, versioned, JSON."""

import hashlib
import json
from typing import Any, ClassVar, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1
CHECKSUM = "checksum"


def canonical_json(value: object) -> bytes:
    """Encode JSON data as bytes that depend on the value alone: sorted keys, no white space."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: object) -> str:
    """Name JSON data by the first 32 hex digits of the sha256 of its canonical encoding."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:32]


def decode_json(data: bytes) -> object:
    """Decode JSON that hvkf wrote.

    Raises:
        ValueError: it is no JSON, no UTF-8, or has numbers that are none.
    """
    if not data.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON that hvkf writes: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


class NewerFormat(ValueError):
    """A record has a format that this hvkf does not know yet."""


class Record(BaseModel):
    """A frozen record that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # Whether "4" is no number in a stored record; settings read their texts themselves.
    IS_STRICT: ClassVar[bool] = True

    def to_json(self) -> bytes:
        """Encode for storage: canonical, so that equal records are equal bytes.

        The field `checksum` is the digest of all others, so that damage is seen.
        """
        values = self.model_dump(mode="json")
        return canonical_json({**values, CHECKSUM: digest(values)}) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Decode what `to_json` wrote; a record of an earlier hvkf has no checksum.

        Raises:
            ValueError: it is not that.
        """
        values = decode_json(data)
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        fields = {name: value for name, value in values.items() if name != CHECKSUM}
        if CHECKSUM in values and values[CHECKSUM] != digest(fields):
            raise ValueError("its checksum is not that of its content")
        version = fields.get("format_version", FORMAT_VERSION)
        if type(version) is not int or version < 1:
            raise ValueError(f"its format_version is {version!r}")
        if version > FORMAT_VERSION:
            raise NewerFormat(
                f"it was written by a newer hvkf: its format is {version}, and this hvkf reads "
                f"{FORMAT_VERSION}"
            )
        # As JSON again, for only there a strict model takes a list for a tuple.
        return cls.model_validate_json(canonical_json(fields), strict=cls.IS_STRICT)


class Failure(Record):
    """One thing that could not be done: the batch goes on without it."""

    code: str
    message: str
    source: str


class Note(Record):
    """One thing that was chosen or noticed in reading a file: `code` is its kind."""

    code: str
    message: str


class Reading(Record):
    """How a video's pictures are read where that is not plain: what ingest chose, cache follows.

    All fields are empty for a square-pixel, progressive, opaque, standard-range video whose first
    track is read as its tags say.

    Attributes:
        track: The video track that is read, counted from 0 without covers.
        aspect: Width to height of a stored pixel, such as `64:45`.
        matrix: `bt601`, `bt709` or `bt2020`, assumed where the file names none.
        transfer: `pq`, `hlg` or another curve whose light is mapped to standard range.
        primaries: The wide gamut that is mapped to BT.709's.
        fields: How fields are made frames: `flagged` (those of frames flagged as interlaced), or
            all, the top (`tff`) or the bottom field (`bff`) being the first.
        alpha: `white`, which shows where pictures are transparent.
        decoder: The decoder, where the usual one does not see transparency.
    """

    track: int = 0
    aspect: str = ""
    matrix: Literal["", "bt601", "bt709", "bt2020"] = ""
    transfer: Literal["", "pq", "hlg", "linear"] = ""
    primaries: Literal["", "bt2020", "dci-p3", "display-p3"] = ""
    fields: Literal["", "flagged", "tff", "bff"] = ""
    alpha: Literal["", "white"] = ""
    decoder: str = ""

    @property
    def identity(self) -> list[object]:
        """What identities of what is read this way hold: nothing when it is plain."""
        changed = self.model_dump(exclude_defaults=True)
        return [changed] if changed else []


class Clip(Record):
    """A row of the catalog: a stretch of one source video, and its caption.

    Frames are counted after resampling to `fps`; `start` and `end` are the cut in frames of the
    *source*, end excluded. `width` and `height` are as displayed: by the pixels' aspect ratio, then
    turned. `frames` lists the source frames that resampling takes, counted from `start`, where the
    frame rate is variable; it is empty where `source_fps` says as much. `notes` says what was
    chosen in reading the file.
    """

    clip_id: str
    source: str
    source_sha256: str
    caption: str
    start: int
    end: int
    source_frames: int
    source_fps: float
    num_frames: int
    fps: float
    width: int
    height: int
    duration_s: float
    split: Literal["train", "holdout"]
    is_variable_fps: bool = False
    frames: tuple[int, ...] = ()
    reading: Reading = Reading()
    notes: str = ""

    @property
    def reading_identity(self) -> list[object]:
        """What tells this clip from one that is read plainly; empty for such a one."""
        return [*self.reading.identity, *([digest(list(self.frames))] if self.frames else [])]


class FileEntry(Record):
    """One stored object of a segment or a checkpoint, relative to its prefix."""

    name: str
    sha256: str
    size: int


class ItemEntry(Record):
    """One sample of a segment: its identity, its video, the sha256 of its encoded columns."""

    key: str
    source_sha256: str
    sha256: str


class SegmentRecord(Record):
    """The ledger's word that a segment of shards is complete; put last, once, conditionally."""

    format_version: int = FORMAT_VERSION
    segment_id: str
    bucket: str
    prefix: str
    items: tuple[ItemEntry, ...]
    files: tuple[FileEntry, ...]
    failures: tuple[Failure, ...] = ()
    attempt: str

    @property
    def content(self) -> tuple[tuple[ItemEntry, ...], tuple[FileEntry, ...]]:
        """What two attempts at the same segment must agree on."""
        return self.items, self.files


class CheckpointRecord(Record):
    """The word that a checkpoint's folder is complete; put last.

    `losses_sha256` is of the first `step` lines of the run's losses; older records lack it.
    """

    format_version: int = FORMAT_VERSION
    step: int
    files: tuple[FileEntry, ...]
    losses_sha256: str | None = None


class RunRecord(Record):
    """What a training run is made of: put once, before its first step."""

    format_version: int = FORMAT_VERSION
    run_id: str
    digest: str
    settings: dict[str, Any]


class TrainResult(Record):
    """What a training run ended with; its presence says that the run is done.

    `checkpoint` and `lora` are paths in the workspace; `loss` is the mean of the last steps.
    """

    format_version: int = FORMAT_VERSION
    run_id: str
    digest: str
    num_steps: int
    num_epochs: int
    num_items: int
    num_holdout: int
    checkpoint: str
    lora: str
    loss: float
    validation_loss: float | None


class Commit(Record):
    """One of the numbered states of a data set; the newest counts."""

    format_version: int = FORMAT_VERSION
    dataset: str
    number: int


class CatalogCommit(Commit):
    """What ingest took: a catalog of clips, named by its content.

    `files` are the catalog and the report beside it; older records lack them.
    """

    catalog: str
    videos: str
    num_clips: int
    num_failed: int
    files: tuple[FileEntry, ...] = ()


class DatasetCommit(Commit):
    """A data set: an ordered list of segments, and the items in them that do not count."""

    plan: str
    catalog: str
    segments: tuple[str, ...]
    masked: tuple[str, ...] = ()
    num_items: int
    num_failed: int
    catalog_sha256: str | None = None


class Part(Record):
    """What one worker process does: `outputs` are the records whose presence says it is done."""

    index: int
    outputs: tuple[str, ...]
    work: dict[str, Any]


class Plan(Record):
    """A stage's work, cut into parts that run in any order, any number of times, anywhere.

    `digest` names the work alone; `config` is the resolved configuration that workers read. A plan
    whose result was committed before has no parts, and `committed` names that result.
    """

    format_version: int = FORMAT_VERSION
    stage: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    parts: tuple[Part, ...]
    committed: str | None = None
    note: str = ""

    @property
    def path(self) -> str:
        """Where the plan lies in the workspace."""
        return plan_path(self.stage, self.digest)


def plan_path(stage: str, plan_digest: str) -> str:
    """Where the plan of a stage with that digest lies in the workspace."""
    return f"plans/{stage}/{plan_digest}.json"


class Summary(Record):
    """What a stage tells people and the next stage when it ends."""

    stage: str
    result: str
    reused: bool
    text: str
    counts: dict[str, int] = {}
    figures: dict[str, float] = {}
    links: dict[str, str] = {}


class Planned(Record):
    """What planning tells the process that asked for it; the plan itself is in the workspace.

    `done` is set when the same work was committed before: there is nothing to run or commit.
    `note` is the plan's word to people, such as a quote.
    """

    plan: str
    workspace: str
    num_parts: int
    num_pending: int
    note: str = ""
    done: Summary | None
