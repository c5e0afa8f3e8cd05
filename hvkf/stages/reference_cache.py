"""Reading the reference's MDS caches: of resized videos, or of latents and text embeddings.

Its tools write no hashes, ids or captions beside latents, so that each record is looked at closely.
"""

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hvkf.buckets import Bucket
from hvkf.errors import BadInput
from hvkf.mds_index import INDEX_NAME, check_stored, num_samples, read_index
from hvkf.model_source import cache_folder
from hvkf.records import digest
from hvkf.shards import MdsFolder, Sample
from hvkf.storage import open_folder
from hvkf.training.items import BUCKET_NAME

LATENT_COLUMNS = ("latents", "latents_cond", "prompt_embeds", "pooled_prompt_embeds")
MASK_COLUMN = "prompt_attention_mask"
TEXT_COLUMNS = ("prompt_embeds", MASK_COLUMN, "pooled_prompt_embeds")
VIDEO_COLUMN = "video_arr"
CAPTION_COLUMN = "caption_str"
LATENT_CHANNELS = 16
SPATIAL_FACTOR, TEMPORAL_FACTOR = 8, 4
SKETCH_VALUES = 512
MAX_SIDE = 1 << 16
MAX_SHOWN = 200

Kind = Literal["latents", "videos"]
Array = npt.NDArray[Any]


class RecordFault(BadInput):
    """One record cannot be taken; `code` is what its failure is recorded under.

    Codes: `wrong-shape`, `wrong-type`, `not-finite`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["RecordFault"], tuple[str, str]]:
        return type(self), (self.code, str(self))


class CacheFolder(NamedTuple):
    """A folder of MDS shards: its address, what it holds, and the bucket that its name says."""

    url: str
    kind: Kind
    bucket: str | None
    num_records: int

    @property
    def name(self) -> str:
        """The last part of its address, such as 1280x720x33_00."""
        return posixpath.basename(self.url)


@dataclass(frozen=True)
class Taken:
    """A record that was checked.

    Attributes:
        origin: Folder and position, for people.
        bucket: Of its pixels.
        key: Names its content: 32 hex digits.
        sha256: Of its content.
        columns: Of latents: float32 arrays and a uint8 mask. Of videos: uint8 [F, H, W, 3].
        caption: Empty where the cache has none.
        source: The video's name where the cache has it, else the origin.
        original_size: Width and height of the video where the cache has them, else the bucket's.
    """

    origin: str
    bucket: Bucket
    key: str
    sha256: str
    columns: dict[str, Array]
    caption: str
    source: str
    original_size: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        """Size of the arrays."""
        return sum(array.nbytes for array in self.columns.values())


def find_folders(paths: Sequence[str]) -> list[CacheFolder]:
    """Find the MDS folders that are meant: each path itself, or those directly in it.

    Folders without records are left out: the reference makes one for each rank.

    Raises:
        BadInput: no index, other columns, or latents and videos together.
        CorruptData: a shard is missing, or not as long as its index says.
    """
    found = [folder for path in paths for url in _addresses(path) for folder in _folder(url)]
    if not found:
        raise BadInput(f"There is not one record in {', '.join(paths)}: name other folders.")
    kinds = {folder.kind for folder in found}
    if len(kinds) > 1:
        raise BadInput(
            f"{', '.join(paths)} hold both videos and latents: import the latents alone, or the "
            "videos as another data set."
        )
    return sorted(found, key=lambda folder: folder.bucket or folder.url)


def _addresses(path: str) -> list[str]:
    url = path.rstrip("/") if "://" in path else str(Path(path).expanduser().absolute())
    if open_folder(url).exists(INDEX_NAME):
        return [url]
    parent, _, name = url.rpartition("/")
    listed = open_folder(parent or "/").list(name)
    inside = [entry for entry in listed if entry.count("/") == 2 and entry.endswith(INDEX_NAME)]
    if not inside:
        raise BadInput(
            f"Neither {path} nor a folder directly in it has an {INDEX_NAME}: name the folders "
            "that the reference's tools wrote, such as mds_cache_latents/1280x720x33_00."
        )
    return [f"{parent}/{posixpath.dirname(entry)}" for entry in inside]


def _folder(url: str) -> list[CacheFolder]:
    store = open_folder(url)
    shards = [shard for shard in read_index(store) if shard.samples]
    if not shards:
        return []
    for shard in shards:
        check_stored(store, shard)
    matched = BUCKET_NAME.match(posixpath.basename(url))
    bucket = str(Bucket.parse(matched.group(1))) if matched else None
    kind = _kind_of(url, set(shards[0].column_names))
    return [CacheFolder(url, kind, bucket, num_samples(shards))]


def _kind_of(url: str, columns: set[str]) -> Kind:
    if columns.issuperset([*LATENT_COLUMNS, MASK_COLUMN]):
        return "latents"
    if columns.issuperset([VIDEO_COLUMN, CAPTION_COLUMN]):
        return "videos"
    shown = ", ".join(sorted(columns))[:MAX_SHOWN]
    raise BadInput(
        f"The shards of {url} have the columns {shown}, which neither of the "
        f"reference's tools writes: latents need {', '.join([*LATENT_COLUMNS, MASK_COLUMN])}, "
        f"videos {VIDEO_COLUMN} and {CAPTION_COLUMN}."
    )


def read_records(folder: CacheFolder) -> Iterator[Taken | RecordFault]:
    """Yield each record of a folder, or why it cannot be taken, in order.

    Raises:
        CorruptData: a shard cannot be read, or its hash (where the index has one) is another.
    """
    records = MdsFolder(open_folder(folder.url), cache_folder() / "shards")
    for position in range(len(records)):
        origin = f"{folder.name} record {position}"
        sample = records[position]
        try:
            yield _take(sample, folder, origin)
        except RecordFault as fault:
            yield RecordFault(fault.code, f"{origin}: {fault}")


def _take(sample: Sample, folder: CacheFolder, origin: str) -> Taken:
    columns = _latents(sample) if folder.kind == "latents" else _video(sample)
    bucket = _bucket(columns, folder)
    caption = str(sample.get(CAPTION_COLUMN, ""))
    sha256 = _content_hash(columns, caption)
    return Taken(
        origin=origin,
        bucket=bucket,
        key=digest(["imported", sha256]),
        sha256=sha256,
        columns=columns,
        caption=caption,
        source=str(sample.get("item", origin)),
        original_size=_original_size(sample, bucket),
    )


def _original_size(sample: Sample, bucket: Bucket) -> tuple[int, int]:
    # The reference stores these two the wrong way round.
    size = sample.get("original_height", bucket.width), sample.get("original_width", bucket.height)
    width, height = size
    if not all(isinstance(side, np.integer | int) and 0 < side <= MAX_SIDE for side in size):
        raise RecordFault("wrong-type", "original_width or original_height is no number of pixels")
    return int(width), int(height)


def _latents(sample: Sample) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name in LATENT_COLUMNS:
        array = np.asarray(sample[name])
        if array.dtype not in (np.float32, np.float16):
            raise RecordFault("wrong-type", f"{name} holds {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise RecordFault("not-finite", f"{name} holds NaN or infinity")
        columns[name] = array.astype(np.float32)
    mask = np.asarray(sample[MASK_COLUMN])
    if not np.isin(mask, (0, 1)).all():
        raise RecordFault("wrong-type", f"{MASK_COLUMN} holds other values than 0 and 1")
    columns[MASK_COLUMN] = mask.astype(np.uint8)
    latents, tokens = columns["latents"], columns["prompt_embeds"]
    if latents.shape != columns["latents_cond"].shape:
        raise RecordFault("wrong-shape", "latents and latents_cond differ in shape")
    if latents.ndim != 4 or latents.shape[0] != LATENT_CHANNELS:
        raise RecordFault(
            "wrong-shape",
            f"latents of shape {list(latents.shape)} are not [16, frames, height, width]",
        )
    if tokens.ndim != 2 or columns[MASK_COLUMN].shape != tokens.shape[:1]:
        raise RecordFault("wrong-shape", f"{MASK_COLUMN} does not fit prompt_embeds")
    return columns


def _video(sample: Sample) -> dict[str, Array]:
    video = np.asarray(sample[VIDEO_COLUMN])
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        raise RecordFault(
            "wrong-type",
            f"{VIDEO_COLUMN} is {video.dtype} of shape {list(video.shape)}, not uint8 [F, H, W, 3]",
        )
    return {"video": video}


def _bucket(columns: dict[str, Array], folder: CacheFolder) -> Bucket:
    """Tell a record's bucket by its arrays; the folder's name must agree."""
    if folder.kind == "latents":
        _, frames, height, width = columns["latents"].shape
        size = (
            width * SPATIAL_FACTOR,
            height * SPATIAL_FACTOR,
            (frames - 1) * TEMPORAL_FACTOR + 1,
        )
    else:
        frames, height, width, _ = columns["video"].shape
        size = (width, height, frames)
    found = "x".join(map(str, size))
    if folder.bucket not in (None, found):
        raise RecordFault(
            "wrong-shape",
            f"it is of {found} in a folder for {folder.bucket}: the reference leaves out the "
            "scaling of clips one side of which already fits; make it anew from the video",
        )
    try:
        return Bucket(*size)
    except BadInput as fault:
        raise RecordFault("wrong-shape", str(fault).rstrip(".")) from None


def _content_hash(columns: dict[str, Array], caption: str) -> str:
    hashed = hashlib.sha256(caption.encode())
    for name, array in sorted(columns.items()):
        hashed.update(f"{name}{array.dtype}{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


class Repeats:
    """Tells repeated records of one bucket.

    Several encoders pad their shares with repeats, and draw other posterior samples of these: the
    text is equal and the latents are close, but nothing is equal bit by bit. They are compared at
    512 evenly spread values, by the root of their mean squared difference over that of the values.
    """

    def __init__(self, same_within: float) -> None:
        self._same_within = same_within
        self._origins: dict[str, str] = {}
        self._by_text: dict[str, list[tuple[Array, str]]] = {}

    def origin_of(self, record: Taken) -> str | None:
        """Return the origin of the earlier record that this one repeats; else remember this one."""
        if record.key in self._origins:
            return self._origins[record.key]
        self._origins[record.key] = record.origin
        if "latents" not in record.columns:
            return None
        text = _content_hash({name: record.columns[name] for name in TEXT_COLUMNS}, "")
        sketch = _sketch(record.columns["latents"])
        earlier = self._by_text.setdefault(text, [])
        for other, origin in earlier:
            if other.shape == sketch.shape and _difference(sketch, other) < self._same_within:
                return origin
        earlier.append((sketch, record.origin))
        return None


def _sketch(latents: Array) -> Array:
    flat = latents.ravel()
    chosen = np.linspace(0, len(flat) - 1, min(SKETCH_VALUES, len(flat))).astype(int)
    sketch: Array = flat[chosen]
    return sketch


def _difference(found: Array, other: Array) -> float:
    scale = float(np.sqrt(np.mean(np.square(other), dtype=np.float64)))
    return float(np.sqrt(np.mean(np.square(found - other), dtype=np.float64))) / (scale or 1.0)
