"""Render: from a manifest of keyframe pairs to videos, each row once, whoever asks for it.

Reads the manifest, its images, a LoRA and the checkpoint; writes `renders/<row identity>/` and
`manifests/<digest>/`.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from hvkf import ledger
from hvkf.catalog import to_parquet
from hvkf.config import Config
from hvkf.errors import AlreadyExists, BadInput
from hvkf.loras import Lora, resolve_lora
from hvkf.manifest import ManifestRow, read_manifest, split_location
from hvkf.model_source import TEXT_PARTS, model_identity
from hvkf.records import FORMAT_VERSION, Failure, FileEntry, Part, Plan, Record, Summary, digest
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderConfig
from hvkf.stages import train
from hvkf.stages.pages import render_page
from hvkf.stages.render_images import ImageFault, image_hashes
from hvkf.storage import Store, open_folder

STAGE = "render"
STAGE_VERSION = 1
MODEL_PARTS = ("transformer", "vae", *TEXT_PARTS)
NUM_READERS = 8
LEDGER = "renders/ledger"
VIDEO_NAME = "video.mp4"
DESCRIPTION_NAME = "video.json"
FIRST_FRAME_NAME = "first.jpg"
LAST_FRAME_NAME = "last.jpg"


class RenderTask(Record):
    """A row to render, the hashes of its images, and what names its result."""

    row: ManifestRow
    first_sha256: str
    last_sha256: str
    identity: str


class FailedRow(Record):
    """A row whose images cannot be used, as planning found."""

    row: ManifestRow
    failure: Failure


class Fidelity(Record):
    """How near frames are to others; `mse` is of values in [0, 1]."""

    mse: float
    psnr_db: float
    ssim: float


class RenderRecord(Record):
    """The ledger's word on a row: its files, or why it cannot be rendered; put last, once."""

    format_version: int = FORMAT_VERSION
    identity: str
    files: tuple[FileEntry, ...] = ()
    first_frame: Fidelity | None = None
    last_frame: Fidelity | None = None
    failure: Failure | None = None
    attempt: str


class ManifestRecord(Record):
    """The word that a manifest is done; put last."""

    format_version: int = FORMAT_VERSION
    num_rows: int
    num_failed: int
    results: str
    gallery: str


class ResultRow(Record):
    """A row of results.parquet; paths are relative to the workspace."""

    row: int
    id: str
    state: Literal["rendered", "failed"]
    code: str
    message: str
    identity: str
    video: str
    first_frame: str
    last_frame: str
    prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance: float
    seed: int
    lora: str
    first_frame_psnr_db: float | None
    last_frame_psnr_db: float | None


def models_identity(model: ModelConfig, store: Store, precision: str) -> str:
    """Name what frames depend on beside the row: the checkpoint, its precision and attention.

    Kernels other than sage's compute the same but for rounding; sage's is approximate.
    """
    is_exact = model.attention != "sage"
    return digest([model_identity(model, store, MODEL_PARTS), precision, is_exact])


def lora_of_this_run(config: Config, store: Store) -> Lora:
    """Find the LoRA that this configuration's own training run ended with.

    Raises:
        BadInput: the run has not ended, or what it would train on is not there.
    """
    run_id = config.experiment.run_id or train.run_of(train.plan(config, store)).run_id
    return resolve_lora(f"run:{run_id}", store)


def _lora(config: Config, store: Store) -> Lora:
    if config.render.lora is not None:
        return resolve_lora(config.render.lora, store)
    try:
        return lora_of_this_run(config, store)
    except BadInput as fault:
        raise BadInput(
            f"render.lora is not set, and this configuration's own run has no LoRA: {fault}"
        ) from fault


def render_folder(identity: str) -> str:
    """Where a row's video lies."""
    return f"renders/{identity}"


def record_path(identity: str) -> str:
    """Where the record of a row lies; all of them in one folder, to be listed at once."""
    return f"{LEDGER}/{identity}.json"


def plan(config: Config, store: Store) -> Plan:
    """Check every row, name what it makes, and share the rows out, equal shapes together.

    Raises:
        BadInput: the manifest's faults, an unknown LoRA, or too many images that cannot be used.
    """
    rows = read_manifest(config.render)
    lora = _lora(config, store)
    models = models_identity(config.model, store, config.render.precision)
    tasks, failed = _tasks(config, rows, lora, models)
    _check_failures(config, [row.failure for row in failed], len(rows))
    first_with = {task.identity: task for task in reversed(tasks)}
    inputs = {
        "lora": lora.model_dump(mode="json"),
        "models": models,
        "rows": digest([[task.row.id, task.identity] for task in tasks]),
        "failed": [row.model_dump(mode="json") for row in failed],
        "repeated": [
            task.model_dump(mode="json") for task in tasks if task is not first_with[task.identity]
        ],
    }
    done = set(store.list(LEDGER))
    num_done = sum(record_path(task.identity) in done for task in tasks)
    root = f"manifests/{digest(inputs)}"
    is_committed = store.exists(f"{root}/record.json")
    return Plan(
        stage=STAGE,
        digest=digest(inputs),
        config=config.model_dump(mode="json"),
        inputs=inputs,
        parts=() if is_committed else tuple(_parts(first_with.values(), config.render)),
        committed=f"{root}/record.json" if is_committed else None,
        note=f"{num_done} of {len(rows)} rows were rendered before",
    )


def _tasks(
    config: Config, rows: Sequence[ManifestRow], lora: Lora, models: str
) -> tuple[list[RenderTask], list[FailedRow]]:
    """Name each row's result by its content; a row whose images cannot be used is a failure."""
    assert config.render.manifest is not None
    folder = open_folder(split_location(config.render.manifest).folder)
    hashes = image_hashes(folder, (path for row in rows for path in _images(row)))
    tasks, failed = [], []
    for row in rows:
        first, last = (hashes[path] for path in _images(row))
        if isinstance(first, ImageFault) or isinstance(last, ImageFault):
            fault = first if isinstance(first, ImageFault) else last
            assert isinstance(fault, ImageFault)
            failed.append(FailedRow(row=row, failure=row_failure(row, fault.code, str(fault))))
            continue
        identity = _identity(config, row, (first, last), lora, models)
        tasks.append(RenderTask(row=row, first_sha256=first, last_sha256=last, identity=identity))
    return tasks, failed


def _images(row: ManifestRow) -> tuple[str, str]:
    return row.first_frame, row.last_frame


def row_failure(row: ManifestRow, code: str, message: str) -> Failure:
    """Describe why a row cannot be rendered."""
    return Failure(code=code, message=message, source=f"row {row.row} ({row.id})")


def _identity(
    config: Config, row: ManifestRow, images: tuple[str, str], lora: Lora, models: str
) -> str:
    settings = [row.prompt, row.shape, row.steps, row.guidance, row.seed]
    alpha = config.render.lora_alpha if lora.sha256 is not None else None
    video = [config.render.fps, config.render.crf]
    return digest([STAGE_VERSION, list(images), settings, lora.sha256, alpha, models, video])


def _parts(tasks: Iterable[RenderTask], config: RenderConfig) -> Iterable[Part]:
    by_shape = sorted(tasks, key=lambda task: (task.row.shape, task.row.row))
    for begin in range(0, len(by_shape), config.rows_per_part):
        chunk = by_shape[begin : begin + config.rows_per_part]
        yield Part(
            index=begin // config.rows_per_part,
            outputs=tuple(record_path(task.identity) for task in chunk),
            work={"rows": [task.model_dump(mode="json") for task in chunk]},
        )


def run(plan: Plan, store: Store, parts: Sequence[Part]) -> None:
    """Render the rows of the given parts that have no record yet."""
    from hvkf.stages.render_rows import render_rows  # torch: planning must not load it

    render_rows(
        Config.model_validate(plan.config),
        store,
        Lora.model_validate(plan.inputs["lora"]),
        str(plan.inputs["models"]),
        [RenderTask.model_validate(row) for part in parts for row in part.work["rows"]],
    )


def commit(plan: Plan, store: Store) -> Summary:
    """Write the table of results and the gallery, and record that the manifest is done.

    Raises:
        BadInput: too many rows failed; the table and the gallery say which.
    """
    root = f"manifests/{plan.digest}"
    if plan.committed is not None:
        return _summary(ManifestRecord.from_json(store.read(plan.committed)), root, reused=True)
    config = Config.model_validate(plan.config)
    rows = _result_rows(plan, store)
    record = ManifestRecord(
        num_rows=len(rows),
        num_failed=sum(row.state == "failed" for row in rows),
        results=f"{root}/results.parquet",
        gallery=f"{root}/index.html",
    )
    store.put(record.results, to_parquet(rows))
    page = render_page(
        "gallery.html.j2", rows=rows, renders="../../renders", lora=plan.inputs["lora"]["name"]
    )
    store.put(record.gallery, page)
    failures = [
        Failure(code=row.code, message=row.message, source=f"row {row.row} ({row.id})")
        for row in rows
        if row.state == "failed"
    ]
    _check_failures(config, failures, len(rows))
    try:
        store.put_new(f"{root}/record.json", record.to_json())
    except AlreadyExists:
        record = ManifestRecord.from_json(store.read(f"{root}/record.json"))
    return _summary(record, root, reused=False)


def _check_failures(config: Config, failures: Sequence[Failure], num_rows: int) -> None:
    limit = config.render.max_failed_fraction
    ledger.check_failures(failures, num_rows, limit, "render.max_failed_fraction")


def _result_rows(plan: Plan, store: Store) -> list[ResultRow]:
    """Say of every row of the manifest what became of it, in the manifest's order."""
    tasks = [RenderTask.model_validate(task) for part in plan.parts for task in part.work["rows"]]
    repeated = [RenderTask.model_validate(task) for task in plan.inputs["repeated"]]
    by_identity = {record.identity: record for record in _read_records(store, tasks)}
    lora = str(plan.inputs["lora"]["name"])
    rows = [_result(task, by_identity[task.identity], lora) for task in (*tasks, *repeated)]
    for failed in map(FailedRow.model_validate, plan.inputs["failed"]):
        rows.append(_failed_result(failed.row, "", failed.failure, lora))
    return sorted(rows, key=lambda row: row.row)


def _read_records(store: Store, tasks: Sequence[RenderTask]) -> list[RenderRecord]:
    def read(task: RenderTask) -> RenderRecord:
        return RenderRecord.from_json(store.read(record_path(task.identity)))

    with ThreadPoolExecutor(NUM_READERS) as readers:
        return list(readers.map(read, tasks))


def _result(task: RenderTask, record: RenderRecord, lora: str) -> ResultRow:
    if record.failure is not None:
        return _failed_result(task.row, task.identity, record.failure, lora)
    first, last = record.first_frame, record.last_frame
    assert first is not None
    assert last is not None
    return ResultRow.model_validate(
        {
            **task.row.model_dump(),
            "state": "rendered",
            "code": "",
            "message": "",
            "identity": task.identity,
            "video": f"{render_folder(task.identity)}/{VIDEO_NAME}",
            "lora": lora,
            "first_frame_psnr_db": first.psnr_db,
            "last_frame_psnr_db": last.psnr_db,
        }
    )


def _failed_result(row: ManifestRow, identity: str, failure: Failure, lora: str) -> ResultRow:
    return ResultRow.model_validate(
        {
            **row.model_dump(),
            "state": "failed",
            "code": failure.code,
            "message": failure.message,
            "identity": identity,
            "video": "",
            "lora": lora,
            "first_frame_psnr_db": None,
            "last_frame_psnr_db": None,
        }
    )


def _summary(record: ManifestRecord, root: str, *, reused: bool) -> Summary:
    text = f"{record.num_rows - record.num_failed} videos of {record.num_rows} rows"
    if record.num_failed:
        text += f", {record.num_failed} failed: see {record.results}"
    return Summary(
        stage=STAGE,
        result=f"{root}/record.json",
        reused=reused,
        text=text,
        counts={"rows": record.num_rows, "failed": record.num_failed},
        links={"gallery": record.gallery, "results": record.results},
    )
