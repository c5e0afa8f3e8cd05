"""Cache: from clips to resized frames in MDS shards, one data set for each bucket.

Reads the data set's newest catalog and its videos; writes `scenes/<stage version>/`.
"""

from collections.abc import Iterable, Sequence, Set
from itertools import groupby
from typing import NamedTuple

from hvkf import buckets, catalog, ledger
from hvkf.config import Config
from hvkf.errors import BadInput, TryAgain
from hvkf.ledger_paths import segment_path
from hvkf.records import (
    CatalogCommit,
    Clip,
    DatasetCommit,
    Part,
    Plan,
    Record,
    SegmentRecord,
    Summary,
    digest,
)
from hvkf.settings.data import CacheConfig
from hvkf.shown import counted
from hvkf.stages.ingest_sources import check_pods_see_sources
from hvkf.storage import Store
from hvkf.stored import read_named

STAGE = "cache"
STAGE_VERSION = 2
SCENES_ROOT = f"scenes/{digest([STAGE_VERSION])}"
"""Where scene shards lie; items name their own cut and bucket."""
CHANNELS = 3


class SceneItem(Record):
    """One sample to make: a window of a clip in a bucket."""

    key: str
    clip: int
    bucket: str
    window: int

    @property
    def num_bytes(self) -> int:
        """Uncompressed size of the pixels."""
        bucket = buckets.Bucket.parse(self.bucket)
        return bucket.width * bucket.height * bucket.num_frames * CHANNELS


class SceneSegment(Record):
    """Samples of one bucket that are stored together."""

    segment_id: str
    items: tuple[SceneItem, ...]


class SceneGroup(Record):
    """Clips decoded one after the other, and the segments that their items make."""

    clips: tuple[Clip, ...]
    segments: tuple[SceneSegment, ...]


def cached_scenes(config: Config, store: Store) -> DatasetCommit:
    """Find the newest scenes of the configured data set.

    Raises:
        BadInput: there are none.
    """
    dataset = config.ingest.dataset
    scenes = ledger.latest_dataset(store, SCENES_ROOT, dataset)
    if scenes is None:
        raise BadInput(
            f"The workspace {store.url} has no scenes of data set {dataset!r}: run `hvkf cache` "
            "first, with the same configuration."
        )
    return scenes


def _requested(config: CacheConfig) -> list[buckets.Bucket]:
    if not config.bucket_reso:
        raise BadInput(
            "cache.bucket_reso is empty: list the buckets to train on as WxHxF, such as 960x544x33."
        )
    return [buckets.Bucket.parse(text) for text in config.bucket_reso]


class Wanted(NamedTuple):
    """The samples that the settings make of a catalog, and why some clips make none."""

    items: list[SceneItem]
    notes: list[str]


def wanted_items(clips: Sequence[Clip], config: CacheConfig) -> Wanted:
    """List the samples that these settings make of a catalog, in its order.

    Raises:
        BadInput: no clip fits any bucket; the longest clip and the shortest bucket are named.
    """
    requested = _requested(config)
    assigned = buckets.assign(
        clips,
        requested,
        head_frame=config.head_frame,
        mode=config.frames,
        min_bucket_count=config.min_bucket_count,
        no_upscale=config.no_upscale,
    )
    if not assigned.members:
        longest = max(clip.num_frames for clip in clips)
        shortest = min(bucket.num_frames for bucket in requested)
        raise BadInput(
            f"No clip enters any bucket: the longest has {longest} frames, the shortest bucket in "
            f"cache.bucket_reso asks for {shortest} behind cache.head_frame={config.head_frame}, "
            f"and cache.min_bucket_count is {config.min_bucket_count}."
        )
    pairs = sorted((clip, bucket) for bucket, of in assigned.members.items() for clip in of)
    items = []
    for index, bucket in pairs:
        clip = clips[index]
        windows = buckets.windows(
            clip.num_frames, bucket.num_frames, config.frames, config.head_frame
        )
        for number, frames in enumerate(windows):
            key = _item_key(clip, bucket, frames)
            items.append(SceneItem(key=key, clip=index, bucket=str(bucket), window=number))
    return Wanted(items, list(_notes(clips, assigned)))


def _notes(clips: Sequence[Clip], assigned: buckets.Assignment) -> Iterable[str]:
    for bucket, count in assigned.dropped.items():
        samples = counted(count, "sample")
        yield f"dropped: bucket {bucket} with only {samples} (cache.min_bucket_count)"
    for index in assigned.too_short:
        clip = clips[index]
        yield (
            f"not taken: {clip.source} from frame {clip.start}: its {clip.num_frames} frames are "
            "shorter than every bucket [too-short]"
        )
    for refusal in assigned.refused:
        yield f"not taken: {clips[refusal.clip].source}: {refusal.message} [{refusal.code}]"


def _item_key(clip: Clip, bucket: buckets.Bucket, frames: Sequence[int]) -> str:
    cut = [clip.source_sha256, clip.start, clip.end, clip.source_fps, clip.fps]
    how = clip.reading_identity  # nothing for clips that are read plainly
    return digest([*cut, str(bucket), list(frames), clip.caption, *how])


def _inputs(config: Config, commit: CatalogCommit) -> dict[str, object]:
    cache = config.cache
    selection = [
        list(cache.bucket_reso),
        cache.min_bucket_count,
        cache.head_frame,
        cache.frames,
        cache.no_upscale,
    ]
    return {
        "catalog": commit.catalog,
        "root": SCENES_ROOT,
        "dataset": commit.dataset,
        "selection": selection,
    }


def plan(config: Config, store: Store) -> Plan:
    """Group the clips whose samples are new into segments; old segments stay as they are."""
    commit = catalog.newest_catalog(store, config.ingest.dataset)
    inputs = _inputs(config, commit)
    root = SCENES_ROOT
    previous = ledger.latest_dataset(store, root, commit.dataset)
    if previous is not None and previous.plan == digest(inputs):
        committed = ledger.commit_path(ledger.dataset_folder(root, commit.dataset), previous.number)
        return _plan(config, digest(inputs), inputs, (), committed)
    clips = catalog.read_clips(store, commit.catalog)
    items = wanted_items(clips, config.cache).items
    old = _keys_of(store, root, previous)
    groups = _groups(clips, [item for item in items if item.key not in old], config.cache)
    if groups:
        check_pods_see_sources(config, STAGE)
    parts: list[Part] = []
    for begin in range(0, len(groups), config.cache.segments_per_part):
        chunk = groups[begin : begin + config.cache.segments_per_part]
        outputs = [
            segment_path(root, segment.segment_id) for group in chunk for segment in group.segments
        ]
        work = {"groups": [group.model_dump(mode="json") for group in chunk]}
        parts.append(Part(index=len(parts), outputs=tuple(outputs), work=work))
    number = previous.number + 1 if previous is not None else 1
    inputs = {**inputs, "number": number}
    return _plan(config, digest([inputs, config.cache.segment_mb]), inputs, tuple(parts), None)


def _plan(
    config: Config,
    plan_digest: str,
    inputs: dict[str, object],
    parts: tuple[Part, ...],
    committed: str | None,
) -> Plan:
    return Plan(
        stage=STAGE,
        digest=plan_digest,
        config=config.model_dump(mode="json"),
        inputs=inputs,
        parts=parts,
        committed=committed,
    )


def _keys_of(store: Store, root: str, commit: DatasetCommit | None) -> set[str]:
    segments = commit.segments if commit is not None else ()
    records = (ledger.read_segment(store, root, segment) for segment in segments)
    return {item.key for record in records for item in record.items}


def _groups(
    clips: Sequence[Clip], items: Sequence[SceneItem], config: CacheConfig
) -> list[SceneGroup]:
    """Cut the items, clip by clip, into groups of about `segment_mb` of pixels."""
    groups: list[SceneGroup] = []
    gathered: list[SceneItem] = []
    for _, of_clip in groupby(items, key=lambda item: item.clip):
        new = list(of_clip)
        size = sum(item.num_bytes for item in [*gathered, *new])
        if gathered and size > config.segment_mb << 20:
            groups.append(_group(clips, gathered))
            gathered = []
        gathered += new
    return groups + ([_group(clips, gathered)] if gathered else [])


def _group(clips: Sequence[Clip], items: Sequence[SceneItem]) -> SceneGroup:
    used = sorted({item.clip for item in items})
    local = [item.model_copy(update={"clip": used.index(item.clip)}) for item in items]
    segments = []
    for bucket in sorted({item.bucket for item in local}):
        of_bucket = tuple(item for item in local if item.bucket == bucket)
        segment_id = digest([bucket, [item.key for item in of_bucket]])
        segments.append(SceneSegment(segment_id=segment_id, items=of_bucket))
    return SceneGroup(clips=tuple(clips[index] for index in used), segments=tuple(segments))


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Make the segments of the given parts that have no record yet."""
    # Decoding and `streaming`: planning needs neither.
    from hvkf.stages.cache_group import run_groups

    run_groups(Config.model_validate(plan.config), store, [_part_groups(part) for part in parts])


def _part_groups(part: Part) -> list[SceneGroup]:
    return [SceneGroup.model_validate(group) for group in part.work["groups"]]


def commit(plan: Plan, store: Store) -> Summary:
    """List the segments that count now, and mask the items that no longer do.

    What another command committed since this plan was made stays, as if this one had been planned
    after it.
    """
    config = Config.model_validate(plan.config)
    dataset, root = str(plan.inputs["dataset"]), SCENES_ROOT
    if plan.committed is not None:
        record = read_named(store, plan.committed, DatasetCommit)
        return _summary(store, root, record, plan.committed, [], reused=True)
    clips = catalog.read_clips(store, str(plan.inputs["catalog"]))
    items, notes = wanted_items(clips, config.cache)
    wanted = {item.key for item in items}
    new = [
        segment.segment_id
        for part in plan.parts
        for group in _part_groups(part)
        for segment in group.segments
    ]
    inputs = {name: value for name, value in plan.inputs.items() if name != "number"}

    def draft(previous: DatasetCommit | None) -> DatasetCommit:
        if previous is not None and previous.plan == digest(inputs):
            return previous
        made = ledger.read_new_segments(store, root, new)
        records = _merged(store, plan, previous, made, wanted)
        used = [record for record in records if any(item.key in wanted for item in record.items)]
        failures = [failure for record in records for failure in record.failures]
        ledger.check_failures(
            failures, len(wanted), config.cache.max_failed_fraction, "cache.max_failed_fraction"
        )
        return DatasetCommit(
            dataset=dataset,
            number=0,
            plan=digest(inputs),
            catalog=str(plan.inputs["catalog"]),
            catalog_sha256=catalog.hash_catalog(store, str(plan.inputs["catalog"])),
            segments=tuple(record.segment_id for record in used),
            masked=tuple(_masked(used, wanted)),
            num_items=sum(item.key in wanted for record in used for item in record.items),
            num_failed=len(failures),
        )

    done = ledger.commit_dataset(store, root, dataset, draft)
    return _summary(store, root, done.commit, done.path, notes, reused=not done.is_new)


def _merged(
    store: Store,
    plan: Plan,
    previous: DatasetCommit | None,
    made: list[SegmentRecord],
    wanted: Set[str],
) -> list[SegmentRecord]:
    """Put together what is committed and what a plan made, each wanted sample once.

    Samples are masked by their key, in whatever segment they lie: no two segments may hold the same
    wanted sample.

    Args:
        store: The workspace.
        plan: The plan; with the segments of the commit that it was made on it has all that it
            wants.
        previous: The newest commit.
        made: The plan's own segments.
        wanted: Keys of the samples that the plan's settings make.

    Raises:
        TryAgain: the commit that the plan was made on is gone, and needed.
    """
    newest = _read(store, previous.segments if previous is not None else ())
    there = {item.key for record in newest for item in record.items} & wanted
    known = {record.segment_id for record in newest}
    new = [record for record in made if record.segment_id not in known]
    fresh = [record for record in new if there.isdisjoint(item.key for item in record.items)]
    number = int(plan.inputs["number"])
    before = ledger.dataset_before(store, SCENES_ROOT, str(plan.inputs["dataset"]), number)
    base = _read(store, before) if before is not None else []
    held = there | {item.key for record in fresh for item in record.items}
    if held >= {item.key for record in (*base, *made) for item in record.items} & wanted:
        return [*newest, *fresh]
    if before is None:
        raise TryAgain(
            f"The scenes of {plan.inputs['dataset']!r} changed too much since this was planned: "
            "run `hvkf cache` again."
        )
    # Segments of both hold some of the same samples: those of this plan stand for all of them.
    return [*base, *made]


def _read(store: Store, segments: Iterable[str]) -> list[SegmentRecord]:
    return [ledger.read_segment(store, SCENES_ROOT, segment) for segment in segments]


def _masked(records: Iterable[SegmentRecord], wanted: set[str]) -> Iterable[str]:
    for record in records:
        yield from (item.key for item in record.items if item.key not in wanted)


def _summary(
    store: Store,
    root: str,
    commit: DatasetCommit,
    path: str,
    notes: Sequence[str],
    *,
    reused: bool,
) -> Summary:
    records = [ledger.read_segment(store, root, segment) for segment in commit.segments]
    masked = set(commit.masked)
    counts: dict[str, int] = {}
    for record in records:
        live = sum(item.key not in masked for item in record.items)
        counts[record.bucket] = counts.get(record.bucket, 0) + live
    lines = [f"{counted(commit.num_items, 'sample')} in {counted(len(records), 'segment')}"]
    lines += [f"{bucket}: {count}" for bucket, count in sorted(counts.items())]
    lines += notes
    lines += [
        f"failed: {failure.source}: {failure.message} [{failure.code}]"
        for record in records
        for failure in record.failures
    ]
    return Summary(
        stage=STAGE,
        result=path,
        reused=reused,
        text="\n".join(lines),
        counts={"items": commit.num_items, "failed": commit.num_failed, "segments": len(records)},
    )
