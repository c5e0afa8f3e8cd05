"""Evaluate: renders held-out pairs with a run's LoRA and without, and says how near they come.

Reads the run's result, the scenes of held-out videos and the checkpoint; writes
`evals/<run id>/<step>/<digest>/` and, for what does not depend on a LoRA, `evals/_base/`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from hvkf import ledger
from hvkf.catalog import read_clips
from hvkf.config import Config
from hvkf.errors import AlreadyExists, BadInput
from hvkf.journal import note_completed
from hvkf.records import (
    Part,
    Plan,
    Summary,
    digest,
)
from hvkf.shown import counted
from hvkf.stages.cache import SCENES_ROOT, cached_scenes
from hvkf.stages.evaluate_records import (
    Evaluation,
    Mean,
    Means,
    Metrics,
    PairRecord,
    PairTask,
    Rendered,
    Settings,
    metrics_path,
    pair_path,
)
from hvkf.stages.evaluate_weights import check_extras
from hvkf.stages.render_tasks import lora_of_this_run, models_identity
from hvkf.storage import Store
from hvkf.stored import read_named, read_record

STAGE = "evaluate"
STAGE_VERSION = 2
"""2: motion, MS-SSIM and the trivial answers are measured."""
BASE_FOLDER = "evals/_base"


def settings_of(config: Config, store: Store) -> Settings:
    """Gather what the renderings depend on beside the pair and the LoRA."""
    evaluate = config.evaluate
    return Settings(
        steps=evaluate.steps,
        guidance=evaluate.guidance,
        seed=evaluate.seed,
        precision=evaluate.precision,
        models=models_identity(config.model, store, evaluate.precision),
        extras=evaluate.extras,
    )


def held_out_pairs(config: Config, store: Store) -> list[PairTask]:
    """List the samples of held-out videos.

    Raises:
        BadInput: there is none; the settings that hold videos out are named.
    """
    scenes = cached_scenes(config, store)
    clips = read_clips(store, scenes.catalog)
    held_out = {clip.source_sha256 for clip in clips if clip.split == "holdout"}
    masked = set(scenes.masked)
    pairs = []
    for segment in scenes.segments:
        record = ledger.read_segment(store, SCENES_ROOT, segment)
        pairs += [
            PairTask(
                key=item.key,
                bucket=record.bucket,
                source_sha256=item.source_sha256,
                segment=segment,
                position=position,
            )
            for position, item in enumerate(record.items)
            if item.source_sha256 in held_out and item.key not in masked
        ]
    if not pairs:
        raise BadInput(
            f"Nothing of data set {scenes.dataset!r} is held out for evaluation "
            f"({counted(len(held_out), 'held-out video')}, none of their samples in a bucket): set "
            "ingest.min_holdout (or ingest.holdout_fraction) higher. What a video was once counted "
            "as stays, so take a new ingest.dataset or add videos."
        )
    return pairs


def set_apart(
    config: Config, store: Store, pairs: Sequence[PairTask]
) -> tuple[list[PairTask], list[PairTask]]:
    """Part the pairs that count from those that are only shown: one of each of their videos.

    Raises:
        BadInput: no pair is left that counts.
    """
    patterns = config.evaluate.apart
    clips = read_clips(store, cached_scenes(config, store).catalog) if patterns else []
    shown = {
        clip.source_sha256
        for clip in clips
        if any(fnmatchcase(clip.source, pattern) for pattern in patterns)
    }
    counted = [pair for pair in pairs if pair.source_sha256 not in shown]
    if not counted:
        raise BadInput(
            f"evaluate.apart={list(patterns)} sets every held-out video apart: leave some that "
            "count, or hold out more."
        )
    by_source: dict[str, PairTask] = {}
    for pair in choose_pairs(pairs, len(pairs)):
        if pair.source_sha256 in shown:
            by_source.setdefault(pair.source_sha256, pair)
    return counted, list(by_source.values())


def choose_pairs(pairs: Iterable[PairTask], num_pairs: int) -> list[PairTask]:
    """Choose pairs by their keys' hashes: buckets in turn, and in each of them videos in turn."""
    by_bucket: dict[str, dict[str, list[PairTask]]] = {}
    for pair in sorted(pairs, key=lambda pair: hashlib.sha256(pair.key.encode()).hexdigest()):
        by_bucket.setdefault(pair.bucket, {}).setdefault(pair.source_sha256, []).append(pair)
    buckets = [list(_in_turn(by_source.values())) for _, by_source in sorted(by_bucket.items())]
    return list(_in_turn(buckets))[:num_pairs]


def _in_turn(lists: Iterable[Sequence[PairTask]]) -> Iterable[PairTask]:
    """Yield the first of each list, then the second of each, and so on."""
    kept = list(lists)
    for place in range(max(map(len, kept), default=0)):
        yield from (entries[place] for entries in kept if place < len(entries))


def plan(config: Config, store: Store) -> Plan:
    """Choose the pairs and share them out; what was rendered without a LoRA before is reused.

    Raises:
        BadInput: no such run, nothing held out, or weights of the extra figures are missing.
    """
    check_extras(config.evaluate)
    lora = lora_of_this_run(config, store)
    found, apart = set_apart(config, store, held_out_pairs(config, store))
    pairs = choose_pairs(found, config.evaluate.num_pairs)
    settings = settings_of(config, store).model_dump(mode="json")
    keys = [pair.key for pair in pairs]
    base = digest([STAGE_VERSION, settings])
    shown = [pair.key for pair in apart]
    own = digest([STAGE_VERSION, settings, lora.sha256, keys, *([shown] if shown else [])])
    work = Evaluation(
        lora=lora,
        scenes=SCENES_ROOT,
        root=f"evals/{lora.run_id}/{lora.checkpoint}/{own}",
        base_root=f"{BASE_FOLDER}/{base}",
        pairs=tuple(pairs),
        apart=tuple(apart),
    )
    is_done = store.exists(metrics_path(work.root))
    inputs = {"evaluation": work.model_dump(mode="json"), "settings": settings}
    return Plan(
        stage=STAGE,
        digest=digest(inputs),
        config=config.model_dump(mode="json"),
        inputs=inputs,
        parts=() if is_done else tuple(_parts(work, config.evaluate.pairs_per_part)),
        committed=metrics_path(work.root) if is_done else None,
        note=f"{len(pairs)} of {counted(len(found), 'held-out sample')}",
    )


def _parts(work: Evaluation, pairs_per_part: int) -> Iterable[Part]:
    for begin in range(0, len(work.rendered), pairs_per_part):
        keys = [pair.key for pair in work.rendered[begin : begin + pairs_per_part]]
        yield Part(
            index=begin // pairs_per_part,
            outputs=tuple(
                pair_path(root, key) for key in keys for root in (work.base_root, work.root)
            ),
            work={"keys": keys},
        )


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Render the pairs of the given parts that have no record yet."""
    from hvkf.stages.evaluate_pairs import evaluate_pairs  # torch: planning must not load it

    keys = {key for part in parts for key in part.work["keys"]}
    evaluate_pairs(Config.model_validate(plan.config), store, evaluation_of(plan), keys)


def evaluation_of(plan: Plan) -> Evaluation:
    """Return what a plan evaluates."""
    return Evaluation.model_validate(plan.inputs["evaluation"])


def commit(plan: Plan, store: Store) -> Summary:
    """Write the report and, last, the metrics.

    Raises:
        BadInput: too many pairs could not be rendered.
    """
    from hvkf.stages.evaluate_summary import summarise
    from hvkf.stages.evaluation_report import write_report

    work = evaluation_of(plan)
    path = metrics_path(work.root)
    if plan.committed is not None:
        return _summary(read_named(store, path, Metrics), work.root, reused=True)
    limit = Config.model_validate(plan.config).evaluate.max_failed_fraction
    rendered, apart = (
        [
            Rendered(_read(store, work.base_root, pair.key), _read(store, work.root, pair.key))
            for pair in pairs
        ]
        for pairs in (work.pairs, work.apart)
    )
    failures = [record.failure for pair in rendered for record in pair if record.failure]
    ledger.check_failures(failures, len(rendered), limit, "evaluate.max_failed_fraction")
    settings = Settings.model_validate(plan.inputs["settings"])
    metrics = summarise(work, settings, rendered, apart)
    config = Config.model_validate(plan.config)
    reason = config.evaluate.apart_reason
    report = write_report(store, f"{work.root}/report.html", metrics, config.gate, reason)
    metrics = metrics.model_copy(update={"files": (report,)})
    try:
        store.put_new(path, metrics.to_json())
    except AlreadyExists:
        metrics = read_record(store, path, Metrics)
    note_completed(store, path)
    return _summary(metrics, work.root, reused=False)


def _read(store: Store, root: str, key: str) -> PairRecord:
    return read_named(store, pair_path(root, key), PairRecord)


def _summary(metrics: Metrics, root: str, *, reused: bool) -> Summary:
    figures: dict[str, float] = {}
    for name, means in _named(metrics).items():
        for place in ("first", "last", "clip"):
            mean: Mean = getattr(means, place)
            figures[f"{name}_{place}_psnr_db"] = mean.psnr_db
            figures[f"{name}_{place}_ssim"] = mean.ssim
    lines = [f"{counted(len(metrics.pairs), 'pair')} of held-out videos, {metrics.checkpoint}"]
    for place, title in (("first", "first frame"), ("last", "last frame"), ("clip", "whole clip")):
        lora, base, alone = (
            figures[f"{name}_{place}_psnr_db"] for name in ("lora", "base", "ceiling")
        )
        lines.append(
            f"{title}: {lora:.2f} dB with the LoRA, {base:.2f} without; the VAE alone: {alone:.2f}"
        )
    return Summary(
        stage=STAGE,
        result=metrics_path(root),
        reused=reused,
        text="\n".join(lines),
        counts={"pairs": len(metrics.pairs), "failed": len(metrics.failures)},
        figures=figures,
        links={"report": f"{root}/report.html", "metrics": metrics_path(root)},
    )


def _named(metrics: Metrics) -> Mapping[str, Means]:
    return {"lora": metrics.lora, "base": metrics.base, "ceiling": metrics.ceiling}
