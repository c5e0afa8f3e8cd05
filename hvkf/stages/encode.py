"""Encode: from scene shards to latents, condition latents and text embeddings in MDS shards.

Reads the newest commit of the data set's scenes and the checkpoint's VAE and text encoders; writes
`latents/<settings digest>/`, one latent segment for each scene segment.
"""

from collections.abc import Sequence

from hvkf import catalog, ledger
from hvkf.config import Config
from hvkf.ledger_paths import segment_path
from hvkf.model_source import TEXT_PARTS, model_identity
from hvkf.records import DatasetCommit, Part, Plan, Summary, digest
from hvkf.shown import counted
from hvkf.stages.cache import SCENES_ROOT, cached_scenes
from hvkf.storage import Store
from hvkf.stored import read_named

STAGE = "encode"
# 2: condition latents without those of empty tiles, text without its padding.
STAGE_VERSION = 2
READABLE_VERSIONS = (2, 1)


def latents_root(config: Config, store: Store, version: int = STAGE_VERSION) -> str:
    """Where latent shards made with these settings and this checkpoint lie."""
    encode = config.encode
    model = model_identity(config.model, store, ("vae", *TEXT_PARTS))
    made_with = [version, model, encode.precision, encode.stored, encode.seed]
    # Later settings count only where they are used: latents made before keep their place.
    if (encode.batch_size, encode.vae_tile) != (1, None):
        made_with += [encode.batch_size, encode.vae_tile]
    if encode.caption_batch_size != 1:
        made_with += ["captions", encode.caption_batch_size]
    return f"latents/{digest(made_with)}"


def newest_latents(config: Config, store: Store) -> tuple[str, DatasetCommit] | None:
    """Find the data set's latents made with these settings: their root and newest commit.

    Those that an older hvkf encoded or imported count while there are no newer ones.
    """
    for version in READABLE_VERSIONS:
        root = latents_root(config, store, version)
        commit = ledger.latest_dataset(store, root, config.ingest.dataset)
        if commit is not None:
            return root, commit
    return None


def latent_segment_id(scene_segment_id: str) -> str:
    """Name the latent segment of a scene segment; the settings are in the root."""
    return digest(["latents", scene_segment_id])


def plan(config: Config, store: Store) -> Plan:
    """Give each scene segment its latent segment; those that are there are done."""
    scenes = cached_scenes(config, store)
    root = latents_root(config, store)
    inputs = {
        "dataset": scenes.dataset,
        "root": root,
        "scenes": SCENES_ROOT,
        "catalog": scenes.catalog,
        "segments": list(scenes.segments),
        "masked": list(scenes.masked),
    }
    previous = ledger.latest_dataset(store, root, scenes.dataset)
    committed = None
    if previous is not None and previous.plan == digest(inputs):
        committed = ledger.commit_path(ledger.dataset_folder(root, scenes.dataset), previous.number)
    size = config.encode.segments_per_part
    chunks = [
        scenes.segments[begin : begin + size] for begin in range(0, len(scenes.segments), size)
    ]
    parts = [
        Part(
            index=index,
            outputs=tuple(segment_path(root, latent_segment_id(scene)) for scene in chunk),
            work={"segments": list(chunk)},
        )
        for index, chunk in enumerate(chunks)
    ]
    return Plan(
        stage=STAGE,
        digest=digest(inputs),
        config=config.model_dump(mode="json"),
        inputs=inputs,
        parts=() if committed else tuple(parts),
        committed=committed,
    )


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Encode the scene segments of the given parts that have no latent segment yet."""
    from hvkf.stages.encode_segments import encode_segments  # torch: planning must not load it

    segments = [str(segment) for part in parts for segment in part.work["segments"]]
    encode_segments(
        Config.model_validate(plan.config),
        store,
        str(plan.inputs["scenes"]),
        str(plan.inputs["root"]),
        segments,
    )


def commit(plan: Plan, store: Store) -> Summary:
    """List the latent segments, in the order of their scenes, with the same items masked."""
    root, dataset = str(plan.inputs["root"]), str(plan.inputs["dataset"])
    if plan.committed is not None:
        found = read_named(store, plan.committed, DatasetCommit)
        return _summary(found, plan.committed, reused=True)
    config = Config.model_validate(plan.config)
    segments = [latent_segment_id(str(scene)) for scene in plan.inputs["segments"]]
    masked = set(plan.inputs["masked"])

    def draft(previous: DatasetCommit | None) -> DatasetCommit:
        if previous is not None and previous.plan == plan.digest:
            return previous
        kept = set() if previous is None else set(previous.segments)
        made = ledger.read_new_segments(store, root, (s for s in segments if s not in kept))
        old = [ledger.read_segment(store, root, segment) for segment in segments if segment in kept]
        records = [*old, *made]
        num_items = sum(item.key not in masked for record in records for item in record.items)
        failures = [failure for record in records for failure in record.failures]
        ledger.check_failures(
            failures, num_items, config.encode.max_failed_fraction, "encode.max_failed_fraction"
        )
        return DatasetCommit(
            dataset=dataset,
            number=0,
            plan=plan.digest,
            catalog=str(plan.inputs["catalog"]),
            catalog_sha256=catalog.hash_catalog(store, str(plan.inputs["catalog"])),
            segments=tuple(segments),
            masked=tuple(plan.inputs["masked"]),
            num_items=num_items,
            num_failed=len(failures),
        )

    done = ledger.commit_dataset(store, root, dataset, draft)
    return _summary(done.commit, done.path, reused=not done.is_new)


def _summary(commit: DatasetCommit, path: str, *, reused: bool) -> Summary:
    return Summary(
        stage=STAGE,
        result=path,
        reused=reused,
        text=f"{counted(commit.num_items, 'sample')} encoded in "
        f"{counted(len(commit.segments), 'segment')}",
        counts={
            "items": commit.num_items,
            "failed": commit.num_failed,
            "segments": len(commit.segments),
        },
    )
