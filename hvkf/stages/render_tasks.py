"""Planning the rows of a manifest: each is checked, named by its content, and put into a part.

Rows stream through: a hundred thousand of them are never all held as objects.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence, Set
from typing import Any, NamedTuple

import pyarrow as pa

from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.keyframe_images import ImageFault, Look
from hvkf.loras import Lora, resolve_lora
from hvkf.manifest import ManifestRow, read_manifest
from hvkf.manifest_errors import ManifestError, RowError
from hvkf.model_source import (
    HUNYUAN_SHIFT,
    TEXT_PARTS,
    known_shift,
    model_identity,
    read_model_file,
)
from hvkf.records import Failure, canonical_json, digest
from hvkf.seeds import seed_for
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderConfig
from hvkf.shown import counted
from hvkf.stages import train
from hvkf.stages.render_cost import (
    MAX_KEPT_FAILURES,
    Candidate,
    Estimate,
    PastRuns,
    Quote,
    cut_into_parts,
    groups_of,
)
from hvkf.stages.render_errors import FoundImages, image_errors, with_image_errors
from hvkf.stages.render_images import ImageFacts, folders_of, image_facts
from hvkf.stages.render_records import LEDGER, Keyframe, RenderTask, record_path, row_failure
from hvkf.stages.render_rows_file import PlannedRow, from_cells, to_batch, write_groups
from hvkf.storage import Store

STAGE_VERSION = 2
MODEL_PARTS = ("transformer", "vae", *TEXT_PARTS)
ROWS_AT_ONCE = 4096
MAX_PROMPT_TOKENS = 256
SAME_ASPECT = 0.02
MAX_SHOWN_CUT = 20
DEFAULT_LORA = ""


class PlannedRows(NamedTuple):
    """All rows of a manifest, and how those to be rendered are put into parts.

    `content` names the rows and what they make, `failures` and `errors` are of rows whose images
    cannot be used, `groups` are the row groups of the file: a part each, and last what is not
    rendered.
    """

    table: pa.Table
    content: str
    loras: dict[str, Lora]
    failures: list[Failure]
    errors: list[RowError]
    groups: list[list[int]]
    quote: Quote

    def file(self) -> bytes:
        """Encode the rows as a Parquet file."""
        return write_groups(self.table, self.groups)


def models_identity(model: ModelConfig, store: Store, precision: str) -> str:
    """Name what frames depend on beside the row: checkpoint, precision, attention, shift.

    Kernels other than sage's compute the same but for rounding; sage's is approximate. The shift
    counts where it is not HunyuanVideo's own: what was rendered before it was looked at stays.
    """
    is_exact = model.attention != "sage"
    made_with = [model_identity(model, store, MODEL_PARTS), precision, is_exact]
    shift = known_shift(model, store)
    if shift is not None and shift != HUNYUAN_SHIFT:
        made_with += ["shift", shift]
    return digest(made_with)


def lora_of_this_run(config: Config, store: Store) -> Lora:
    """Find the LoRA that this configuration's own training run ended with.

    Raises:
        BadInput: the run has not ended, or what it would train on is not there.
    """
    run_id = config.experiment.run_id or train.run_of(train.plan(config, store)).run_id
    return resolve_lora(f"run:{run_id}", store)


def _default_lora(config: Config, store: Store) -> Lora:
    if config.render.lora is not None:
        return resolve_lora(config.render.lora, store)
    try:
        return lora_of_this_run(config, store)
    except BadInput as fault:
        raise BadInput(
            f"render.lora is not set, and this configuration's own run has no LoRA: {fault}"
        ) from fault


def identity_of(
    render: RenderConfig,
    row: ManifestRow,
    images: Sequence[tuple[int, str]],
    lora: Lora,
    models: str,
) -> str:
    """Name what a row makes: by its images' content, its settings and the models, not its id.

    Args:
        render: The settings of all rows.
        row: The row; its paths, id and tags do not count.
        images: Position and content of each keyframe.
        lora: The row's LoRA.
        models: See `models_identity`.
    """
    settings = [row.prompt, row.shape, row.steps, row.guidance, row.seed]
    if row.true_cfg_scale > 1:
        settings += [row.negative_prompt, row.true_cfg_scale]
    alpha = render.lora_alpha if lora.sha256 is not None else None
    video = [render.fps, render.crf, render.keep_frames, render.keep_latents]
    ways = dict(render.speed.approximations)
    return digest([STAGE_VERSION, list(images), settings, lora.sha256, alpha, models, video, ways])


def retry_of(
    task: RenderTask, number: int, render: RenderConfig, lora: Lora, models: str
) -> RenderTask:
    """Give the row as it is tried for the `number`-th time again: with another seed."""
    seed = seed_for(task.row.seed, "retry", None, number)
    row = task.row.model_copy(update={"seed": seed})
    images = [(frame.position, frame.content) for frame in task.keyframes]
    identity = identity_of(render, row, images, lora, models)
    return task.model_copy(update={"row": row, "identity": identity})


def plan_rows(
    config: Config, store: Store, models: str, again: Collection[str] = ()
) -> PlannedRows:
    """Check every row, name what it makes, and share the rows out.

    Args:
        config: The settings, with the manifest.
        store: The workspace.
        models: See `models_identity`.
        again: Identities of rows whose records do not count.

    Raises:
        ManifestError: all errors of its rows, those of their images among them.
        BadInput: it cannot be read, or an unknown LoRA.
    """
    loras: dict[str, Lora] = {}

    def find_lora(spec: str) -> None:
        loras[spec] = resolve_lora(spec, store)

    try:
        batches = list(_batches(read_manifest(config.render, find_lora)))
    except ManifestError as error:
        raise with_image_errors(error, config, store) from None
    if any(not row.lora for batch in batches for row in _rows(batch)):
        loras[DEFAULT_LORA] = _default_lora(config, store)
    folders = folders_of(config.render, store)
    images = image_facts(
        folders, {path for batch in batches for row in _rows(batch) for _, path in row.frames}
    )
    done = set(store.list(LEDGER)) - set(map(record_path, again))
    return _Planner(config, store, models, loras, images, done).plan(batches)


def _batches(rows: Iterator[ManifestRow]) -> Iterator[pa.RecordBatch]:
    """Hold rows as Arrow batches; a row's task is filled in by the second pass."""
    kept: list[PlannedRow] = []
    for row in rows:
        task = RenderTask(row=row, keyframes=(), lora="", identity="")
        kept.append(PlannedRow(task=task, state="task"))
        if len(kept) == ROWS_AT_ONCE:
            yield to_batch(kept)
            kept = []
    if kept:
        yield to_batch(kept)


def _rows(batch: pa.RecordBatch) -> Iterator[ManifestRow]:
    return (from_cells(cells).task.row for cells in batch.to_pylist())


class _Planner:
    """Names rows one after the other, and remembers what planning has to say about them all."""

    def __init__(
        self,
        config: Config,
        store: Store,
        models: str,
        loras: dict[str, Lora],
        images: FoundImages,
        done: Set[str],
    ) -> None:
        self._render = config.render
        self._models = models
        self._loras = loras
        self._images = images
        self._prompts = PromptLengths(config.model, store)
        self._past = PastRuns(store)
        self._done = done
        self._content = hashlib.sha256()
        self._failures: list[Failure] = []
        self._errors: list[RowError] = []
        self._identities: dict[str, int] = {}
        self._candidates: list[Candidate] = []
        self._to_render: list[tuple[str, str, Estimate]] = []
        self._pending: set[int] = set()
        self._others: list[int] = []
        self._num_rows = self._num_rendered = self._num_cropped = 0
        self._cut: list[str] = []

    def plan(self, batches: Sequence[pa.RecordBatch]) -> PlannedRows:
        planned = [to_batch(map(self._plan_row, _rows(batch))) for batch in batches]
        parts = cut_into_parts(self._candidates, self._render)
        return PlannedRows(
            table=pa.Table.from_batches(planned),
            content=self._content.hexdigest()[:32],
            loras={lora.name: lora for lora in self._loras.values()},
            failures=self._failures,
            errors=self._errors,
            groups=[*parts, self._others] if self._others else parts,
            quote=self._quote(sum(not self._pending.isdisjoint(part) for part in parts)),
        )

    def _plan_row(self, row: ManifestRow) -> PlannedRow:
        lora = self._loras[row.lora]
        index, self._num_rows = self._num_rows, self._num_rows + 1
        found = [(place, path, self._images[path]) for place, path in row.frames]
        fault = next((facts for *_, facts in found if isinstance(facts, ImageFault)), None)
        keyframes = tuple(
            Keyframe(position=place, path=path, sha256=facts.sha256, reading=facts.look.reading)
            for place, path, facts in found
            if isinstance(facts, ImageFacts)
        )
        if fault is not None:
            task = RenderTask(row=row, keyframes=keyframes, lora=lora.name, identity="")
            failure = row_failure(row, fault.code, str(fault))
            self._failures.append(failure)
            self._errors += image_errors(row, self._images)
            self._others.append(index)
            return self._noted(PlannedRow(task=task, state="failed", failure=failure))
        images = [(frame.position, frame.content) for frame in keyframes]
        identity = identity_of(self._render, row, images, lora, self._models)
        notes = self._notes(
            row, [facts.look for *_, facts in found if isinstance(facts, ImageFacts)]
        )
        task = RenderTask(
            row=row, keyframes=keyframes, lora=lora.name, identity=identity, notes=notes
        )
        is_done = record_path(identity) in self._done
        self._num_rendered += is_done
        if self._identities.setdefault(identity, index) != index:
            self._others.append(index)
            return self._noted(PlannedRow(task=task, state="repeated"))
        estimate = self._past.estimate(row)
        self._candidates.append(Candidate(index, lora.name, row.shape, row.row, estimate.seconds))
        if not is_done:
            self._to_render.append((lora.name, row.shape, estimate))
            self._pending.add(index)
        return self._noted(PlannedRow(task=task, state="task"))

    def _noted(self, planned: PlannedRow) -> PlannedRow:
        """Count a row into the name of the whole manifest."""
        task, failure = planned.task, planned.failure
        row = task.row
        cells = [row.row, row.id, row.tags, [path for _, path in row.frames], task.lora]
        what = [task.identity, planned.state, failure and failure.model_dump(), task.notes]
        self._content.update(canonical_json([cells, what]))
        return planned

    def _notes(self, row: ManifestRow, images: Sequence[Look]) -> str:
        notes = []
        if self._prompts.is_cut(row.prompt):
            self._cut.append(f"row {row.row} ({row.id})")
            notes.append(f"the prompt is cut after {MAX_PROMPT_TOKENS} tokens")
        if any(_is_cropped(image, row) for image in images):
            self._num_cropped += 1
            sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
            notes.append(f"images of {sizes} are cropped to {row.width}x{row.height}")
        notes += dict.fromkeys(image.note for image in images if image.note)
        return "; ".join(notes)

    def _quote(self, num_parts: int) -> Quote:
        notes = []
        if self._num_cropped:
            rows = counted(self._num_cropped, "row")
            notes.append(f"in {rows} images are cropped at the sides (see notes)")
        if self._cut:
            more = len(self._cut) - MAX_SHOWN_CUT
            notes.append(
                f"prompts of more than {MAX_PROMPT_TOKENS} tokens are cut: "
                + ", ".join(self._cut[:MAX_SHOWN_CUT])
                + (f" and {more} more" if more > 0 else "")
            )
        if not self._prompts.is_known:
            notes.append("the tokenizer is not on this machine: long prompts are not told")
        num_repeated = self._num_rows - len(self._failures) - len(self._identities)
        return Quote(
            num_rows=self._num_rows,
            num_rendered=self._num_rendered,
            num_repeated=num_repeated,
            num_failed=len(self._failures),
            num_parts=num_parts,
            groups=groups_of(self._to_render, self._past),
            notes=tuple(notes),
            failures=tuple(self._failures[:MAX_KEPT_FAILURES]),
        )


def _is_cropped(image: Look, row: ManifestRow) -> bool:
    return abs(image.width * row.height / (image.height * row.width) - 1) > SAME_ASPECT


class PromptLengths:
    """Tells which prompts the text encoder will cut, without loading it."""

    def __init__(self, model: ModelConfig, store: Store) -> None:
        self._tokenizer: Any = None
        content = read_model_file(model, store, "tokenizer/tokenizer.json")
        if content is not None:
            from tokenizers import Tokenizer  # takes a moment to load

            self._tokenizer = Tokenizer.from_str(content.decode())
            self._tokenizer.no_truncation()

    @property
    def is_known(self) -> bool:
        """Whether the tokenizer is on this machine."""
        return self._tokenizer is not None

    def is_cut(self, prompt: str) -> bool:
        """Whether a prompt has more tokens than the encoder keeps; its end mark counts as one."""
        # A token is at least a byte long, so that few prompts need counting.
        if self._tokenizer is None or len(prompt.encode()) < MAX_PROMPT_TOKENS:
            return False
        encoded = self._tokenizer.encode(prompt, add_special_tokens=False)
        return len(encoded.ids) + 1 > MAX_PROMPT_TOKENS
