"""Train: from latents to a LoRA, with checkpoints that a stopped run goes on from.

Reads the newest latents of the data set (or caches of the reference) and the transformer; writes
`runs/<run id>/`: checkpoints, losses, trackers' logs and, last, result.json.
"""

from collections.abc import Sequence
from typing import Any

from hvkf.config import Config
from hvkf.distributed import num_ranks
from hvkf.errors import BadInput
from hvkf.loras import NONE, Lora, resolve_lora
from hvkf.model_source import model_identity
from hvkf.records import Part, Plan, RunRecord, Summary, TrainResult, digest
from hvkf.shown import counted
from hvkf.storage import Store
from hvkf.training.items import find_sources, read_items
from hvkf.training.runs import read_result, read_run, result_path, run_folder
from hvkf.training.settings import (
    Identities,
    check_same_work,
    default_run_id,
    global_batch_size,
    num_steps,
    work_settings,
)
from hvkf.training.shard_cache import check_cache_limit

STAGE = "train"


def plan(config: Config, store: Store) -> Plan:
    """Name the run and what it trains on; a run that has its result is done.

    Raises:
        BadInput: no latents, or the run id was taken by other work.
    """
    sources = find_sources(config, store)
    check_cache_limit(config.data.streaming_kwargs.cache_limit, store, sources)
    items = read_items(store, sources, config.data)
    ranks = num_ranks(config.jobs.train.num_ranks)
    num_steps(config, items.counts(), global_batch_size(config, ranks))
    lora = resolve_lora(config.network.lora_weights or NONE, store)
    settings = work_settings(
        config,
        Identities(
            transformer=model_identity(config.model, store, ["transformer"]),
            latents=items.identity,
            lora=lora.sha256,
        ),
        ranks,
    )
    run = RunRecord(
        run_id=config.experiment.run_id or default_run_id(config, settings),
        digest=digest(settings),
        settings=settings,
    )
    begun = read_run(store, run.run_id)
    if begun is not None:
        check_same_work(begun, run)
    is_done = begun is not None and read_result(store, run.run_id) is not None
    path = result_path(run.run_id)
    return Plan(
        stage=STAGE,
        digest=digest([run.run_id, run.digest]),
        config=config.model_dump(mode="json"),
        inputs={
            "sources": sources,
            "run": run.model_dump(mode="json"),
            "lora": lora.model_dump(mode="json"),
        },
        parts=() if is_done else (Part(index=0, outputs=(path,), work={"run_id": run.run_id}),),
        committed=path if is_done else None,
        note=f"{counted(len(items.train), 'sample')} train{'s' * (len(items.train) == 1)}, "
        f"{len(items.holdout)} held out",
    )


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Train to the end, from the newest whole checkpoint; every rank calls this."""
    from hvkf.training.loop import Work, train  # torch: planning must not load it

    if parts:
        work = Work(
            config=Config.model_validate(plan.config),
            run=run_of(plan),
            sources=plan.inputs["sources"],
            lora=Lora.model_validate(plan.inputs["lora"]),
        )
        train(work, store)


def run_of(plan: Plan) -> RunRecord:
    """Return the run that a plan is for."""
    record: dict[str, Any] = plan.inputs["run"]
    return RunRecord.model_validate(record)


def commit(plan: Plan, store: Store) -> Summary:
    """Sum up what the run ended with.

    Raises:
        BadInput: the run has not ended.
    """
    run_id = run_of(plan).run_id
    result = read_result(store, run_id)
    if result is None:
        raise BadInput(
            f"The run {run_id!r} has no result yet: run `hvkf train run` with this plan to its end."
        )
    return _summary(result, reused=plan.committed is not None)


def run_as_rank(config: Config, store: Store) -> Summary:
    """Plan, train and commit in this process: one of those that torchrun or accelerate started."""
    planned = plan(config, store)
    run(planned, store, planned.parts)
    return commit(planned, store)


def _summary(result: TrainResult, *, reused: bool) -> Summary:
    text = (
        f"run {result.run_id}: {counted(result.num_steps, 'step')} over "
        f"{counted(result.num_items, 'sample')}, "
        f"loss {result.loss:.4g}"
    )
    figures = {"loss": result.loss}
    if result.validation_loss is not None:
        text += f", validation loss {result.validation_loss:.4g}"
        figures["validation_loss"] = result.validation_loss
    return Summary(
        stage=STAGE,
        result=result_path(result.run_id),
        reused=reused,
        text=text,
        counts={"steps": result.num_steps, "items": result.num_items},
        figures=figures,
        links={
            "lora": result.lora,
            "checkpoint": result.checkpoint,
            "losses": f"{run_folder(result.run_id)}/losses.jsonl",
        },
    )
