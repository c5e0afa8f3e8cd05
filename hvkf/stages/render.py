"""Render: from a manifest of keyframe pairs to videos, each row once, whoever asks for it.

Reads the manifest, its images, a LoRA and the checkpoint; writes `renders/<row identity>/` and
`manifests/<digest>/`.
"""

import contextlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from hvkf import ledger
from hvkf.config import Config
from hvkf.errors import AlreadyExists
from hvkf.journal import note_completed
from hvkf.loras import Lora
from hvkf.manifest import manifest_bytes
from hvkf.manifest_errors import ManifestError
from hvkf.records import Failure, Part, Plan, Record, Summary, digest
from hvkf.settings.rendering import RenderConfig
from hvkf.shown import counted
from hvkf.stages import render_errors
from hvkf.stages.render_cost import Quote
from hvkf.stages.render_records import (
    ManifestRecord,
    manifest_folder,
)
from hvkf.stages.render_results import write_results
from hvkf.stages.render_rows_file import plan_parts, read_parts
from hvkf.stages.render_tasks import PlannedRows, models_identity, plan_rows
from hvkf.storage import Store
from hvkf.stored import read_named, read_record

STAGE = "render"


class Quoted(Record):
    """A plan and what it will cost."""

    plan: Plan
    quote: Quote


class Checked(NamedTuple):
    """A manifest's rows, checked and named; nothing is stored yet."""

    models: str
    planned: PlannedRows

    @property
    def quote(self) -> Quote:
        """What rendering them will take."""
        return self.planned.quote


def plan(config: Config, store: Store) -> Plan:
    """Check every row, name what it makes, and share the rows out, equal shapes together.

    Raises:
        BadInput: the manifest's faults, an unknown LoRA, or too many images that cannot be used.
    """
    return quoted_plan(config, store).plan


def quoted_plan(config: Config, store: Store) -> Quoted:
    """Plan, and say what rendering will take; see `plan`."""
    checked = check_rows(config, store)
    if refusal := refusal_of(config, checked, store):
        raise refusal
    return plan_checked(config, store, checked)


def check_rows(config: Config, store: Store, again: Collection[str] = ()) -> Checked:
    """Check every row, and name what it makes; nothing is written.

    Args:
        config: The settings, with the manifest.
        store: The workspace.
        again: Identities of rows that are to be rendered although they have a record.

    Raises:
        BadInput: the manifest's faults, or an unknown LoRA. Images that cannot be used are in the
            quote; see `refusal_of`.
    """
    manifest_bytes(config.render)  # first: to look at the checkpoint may take long, and fail
    models = models_identity(config.model, store, config.render.precision)
    return Checked(models, plan_rows(config, store, models, again))


def refusal_of(config: Config, checked: Checked, store: Store) -> ManifestError | None:
    """Give the error of a manifest of which too many rows cannot be rendered: with all of them."""
    planned = checked.planned
    return render_errors.refusal_of(config, planned.errors, len(planned.table), store)


def plan_inputs(config: Config, checked: Checked) -> dict[str, Any]:
    """Say what names a manifest's work."""
    planned = checked.planned
    return {
        "loras": {name: lora.model_dump(mode="json") for name, lora in planned.loras.items()},
        "models": checked.models,
        "rows": planned.content,
        "checks": config.render.checks.model_dump(mode="json"),
    }


def plan_checked(config: Config, store: Store, checked: Checked) -> Quoted:
    """Share checked rows out to parts, and store the rows for their workers."""
    planned = checked.planned
    inputs = plan_inputs(config, checked)
    root = manifest_folder(digest(inputs))
    is_committed = store.exists(f"{root}/record.json")
    found = Plan(
        stage=STAGE,
        digest=digest(inputs),
        config=config.model_dump(mode="json"),
        inputs=inputs,
        parts=() if is_committed else tuple(_parts(planned, config.render, store, root)),
        committed=f"{root}/record.json" if is_committed else None,
    )
    num_pending = len(ledger.pending_parts(store, found))
    quote = planned.quote.model_copy(update={"num_parts": num_pending})
    return Quoted(plan=found.model_copy(update={"note": "\n".join(quote.lines())}), quote=quote)


def _parts(planned: PlannedRows, render: RenderConfig, store: Store, root: str) -> list[Part]:
    """Store the rows in their parts; whoever planned the same rows first decides on the parts.

    Estimates change while a manifest is worked off, and its workers know parts by their numbers.
    """
    path = f"{root}/rows-{digest([render.part_minutes, render.rows_per_part])[:8]}.parquet"
    if not store.exists(path):
        with contextlib.suppress(AlreadyExists):
            store.put_new(path, planned.file())
    return plan_parts(store, path)


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Render the rows of the given parts that have no record yet."""
    from hvkf.stages.render_rows import render_rows  # torch: planning must not load it

    render_rows(
        Config.model_validate(plan.config),
        store,
        {name: Lora.model_validate(lora) for name, lora in plan.inputs["loras"].items()},
        str(plan.inputs["models"]),
        read_parts(store, parts),
    )


def commit(plan: Plan, store: Store) -> Summary:
    """Write the table of results and the gallery, and record that the manifest is done.

    Raises:
        BadInput: too many rows failed; the table and the gallery say which.
    """
    root = manifest_folder(plan.digest)
    if plan.committed is not None:
        return _summary(read_named(store, plan.committed, ManifestRecord), root, reused=True)
    config = Config.model_validate(plan.config)
    record, failures = write_results(plan, config, store)
    _check_failures(config, failures, record.num_rows)
    try:
        store.put_new(f"{root}/record.json", record.to_json())
    except AlreadyExists:
        record = read_record(store, f"{root}/record.json", ManifestRecord)
    note_completed(store, f"{root}/record.json")
    return _summary(record, root, reused=False)


def _check_failures(config: Config, failures: Sequence[Failure], num_rows: int) -> None:
    limit = config.render.max_failed_fraction
    ledger.check_failures(failures, num_rows, limit, "render.max_failed_fraction")


def _summary(record: ManifestRecord, root: str, *, reused: bool) -> Summary:
    num_videos = record.num_rows - record.num_failed
    text = f"{counted(num_videos, 'video')} of {counted(record.num_rows, 'row')}"
    if record.num_failed:
        text += f", {record.num_failed} failed: see {record.results}"
    if record.num_marked:
        text += f", {record.num_marked} marked by the checks"
    return Summary(
        stage=STAGE,
        result=f"{root}/record.json",
        reused=reused,
        text=text,
        counts={
            "rows": record.num_rows,
            "failed": record.num_failed,
        },
        links={"gallery": record.gallery, "results": record.results},
    )
