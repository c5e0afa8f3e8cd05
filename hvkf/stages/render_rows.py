"""Rendering rows on one device: the models are loaded once for all of them."""

import hashlib
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from threading import Event, Thread

import numpy as np
import torch

from hvkf import ledger
from hvkf.config import Config
from hvkf.errors import BadInput, GaveWay
from hvkf.jobs.turns import GiveWay
from hvkf.keyframe_images import ImageFault, decode_keyframe
from hvkf.loras import Lora, local_lora_file
from hvkf.model.device import device_name
from hvkf.model.renderer import Pair, Rendered, Renderer, RenderFault
from hvkf.progress import Progress, progress
from hvkf.stages.render_checks import marks_of
from hvkf.stages.render_claims import Claims
from hvkf.stages.render_cost import Pace
from hvkf.stages.render_images import folders_of
from hvkf.stages.render_records import (
    Keyframe,
    RenderRecord,
    RenderTask,
    record_path,
    row_failure,
)
from hvkf.stages.render_tasks import retry_of
from hvkf.stages.render_video import MadeWith, store_video
from hvkf.stages.render_work import Render, failure_record, put_record, work_off
from hvkf.stops import raise_if_told
from hvkf.storage import Store
from hvkf.stored import read_record

logger = logging.getLogger(__name__)
MAX_SHOWN_IMAGES = 10


class _Changed(Exception):
    """An image is not the one that was planned with."""


class _ClaimLost(Exception):
    """Another worker has taken a row, since this one fell silent for too long."""


class _GivesWay(Exception):
    """Somebody more urgent has waited for long enough amid this row."""


def render_rows(
    config: Config,
    store: Store,
    loras: Mapping[str, Lora],
    models: str,
    tasks: Sequence[RenderTask],
) -> None:
    """Render the rows that have no record yet, beside any number of other workers.

    Raises:
        BadInput: images changed since the plan was made; all other rows were rendered.
        GaveWay: somebody more urgent waits; the rest comes later.
    """
    missing = [task for task in tasks if not store.exists(record_path(task.identity))]
    if not missing:
        return
    render = config.render
    claims = Claims(store, life_s=render.claim_s, max_tries=render.max_tries)
    changed: list[str] = []
    gave_way = False
    num_steps = sum(task.row.steps for task in missing)
    with progress("render", num_steps, "steps", is_in_pieces=True) as shown:
        try:
            with _Renewing(claims):
                renderer = Renderer(config.model, store, render.precision, render.speed)
                for lora in dict.fromkeys(task.lora for task in missing):
                    worker = _Worker(config, store, renderer, loras[lora], models, claims, shown)
                    worker.work_off([task for task in missing if task.lora == lora])
                    changed += worker.changed
                    worker.pace.put(store)
                    gave_way = worker.has_given_way
                    if gave_way:
                        break
        finally:
            claims.release_all()
    if changed:
        more = len(changed) - MAX_SHOWN_IMAGES
        raise BadInput(
            "Images changed since this work was planned, so run `hvkf render` again: "
            + "; ".join(changed[:MAX_SHOWN_IMAGES])
            + (f"; and {more} more" if more > 0 else "")
            + "."
        )
    if gave_way:
        raise GaveWay("A more urgent render waits: the rest of these rows comes after it.")


class _Renewing:
    """Renews claims in the background, for as long as the worker works."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._stop = Event()
        self._thread = Thread(target=self._renew, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._stop.wait(self._claims.renew_every_s):
            try:
                lost = self._claims.renew()
            except Exception as fault:  # whatever it is: claims run out, and the rows are not lost
                logger.warning("Claims could not be renewed (%s); trying again.", fault)
                continue
            for identity in lost:
                logger.warning("Row %s was taken by another worker.", identity)


class _Worker:
    """The loaded models with one LoRA, and the settings under which they render rows."""

    def __init__(
        self,
        config: Config,
        store: Store,
        renderer: Renderer,
        lora: Lora,
        models: str,
        claims: Claims,
        shown: Progress,
    ) -> None:
        self._config = config
        self._store = store
        self._lora = lora
        self._models = models
        self._claims = claims
        self._shown = shown
        self._images = folders_of(config.render, store)
        file = local_lora_file(lora, store)
        self._renderer = renderer
        self._renderer.forget_loras()
        self._alpha: float | None = None
        if file is not None:
            self._alpha = self._renderer.fuse_lora(file, config.render.lora_alpha).alpha
        self._attempt = ledger.attempt_name()
        self.changed: list[str] = []
        self.pace = Pace(device_name())
        self._give_way = GiveWay(config.render.priority, config.render.urgent_within_s)
        self.has_given_way = False

    def work_off(self, tasks: Sequence[RenderTask]) -> None:
        """Render rows until all have a record, by whomever; see `render_work`."""
        steps = work_off(
            tasks,
            self._store,
            self._claims,
            attempt=self._attempt,
            batch_size=self._config.render.speed.batch_size,
            gives_way=self._gives_way,
        )
        step = next(steps, None)
        while step is not None:
            given_up: Collection[str] = ()
            if isinstance(step, Render):
                given_up = self._render_all(step.tasks)
            else:
                time.sleep(step.seconds)
            try:
                step = steps.send(given_up)
            except StopIteration:
                return

    def _gives_way(self) -> bool:
        """Whether this worker ends its part early, between two rows."""
        if not self.has_given_way and self._give_way.look() is not None:
            self.has_given_way = True
        return self.has_given_way

    def _render_all(self, tasks: Sequence[RenderTask]) -> list[str]:
        """Render claimed rows; returns those whose images changed."""
        pairs: dict[str, Pair] = {}
        given_up = []
        for task in tasks:
            try:
                pairs[task.identity] = self._pair(task)
            except ImageFault as fault:
                raise_if_told()
                self._shown.advance(task.row.steps)
                self._put(task, self._failure(task, fault))
            except _Changed as fault:
                raise_if_told()
                self.changed.append(f"row {task.row.row} ({task.row.id}): {fault}")
                self._claims.end(task.identity, "released")
                self._shown.advance(task.row.steps)
                given_up.append(task.identity)
        self._render_pairs([task for task in tasks if task.identity in pairs], pairs)
        return given_up

    def _render_pairs(self, tasks: Sequence[RenderTask], pairs: Mapping[str, Pair]) -> None:
        if not tasks:
            return
        begun_s = time.monotonic()
        try:
            rendered = self._sample(tasks, [pairs[task.identity] for task in tasks])
        except (_ClaimLost, _GivesWay, ImportError) as end:
            for task in tasks:
                self._claims.end(task.identity, "released")
            if isinstance(end, ImportError):
                raise  # no row's doing, and no start helps
            return
        except Exception as fault:
            raise_if_told()
            # Whatever a row makes the model raise is that row's try, and the others go on.
            if len(tasks) > 1:
                for task in tasks:
                    self._render_pairs([task], pairs)
                return
            logger.warning("Row %d (%s) failed: %r", tasks[0].row.row, tasks[0].row.id, fault)
            self._claims.end(tasks[0].identity, "failed", f"{type(fault).__name__}: {fault}")
            return
        seconds = (time.monotonic() - begun_s) / len(tasks)
        for task, one in zip(tasks, rendered, strict=True):
            if isinstance(one, RenderFault):
                self._put(task, self._failure(task, one))
                continue
            self._put(task, self._kept(task, pairs[task.identity], one, seconds))

    def _sample(
        self, tasks: Sequence[RenderTask], pairs: Sequence[Pair]
    ) -> list[Rendered | RenderFault]:
        row = tasks[0].row

        def on_step(step: int) -> None:
            self._shown.advance(len(tasks), note=f"{row.shape} {row.id}")
            if not {task.identity for task in tasks} <= set(self._claims.held):
                raise _ClaimLost
            giving = self._give_way.look(now=False) if step < row.steps - 1 else None
            if giving is not None and giving.at_once:
                raise _GivesWay

        return self._renderer.render_batch(
            pairs,
            num_frames=row.num_frames,
            steps=row.steps,
            guidance=row.guidance,
            true_cfg_scale=row.true_cfg_scale,
            on_step=on_step,
        )

    def _kept(self, task: RenderTask, pair: Pair, one: Rendered, seconds: float) -> RenderRecord:
        """Store a video, and further tries of it where it leaves the bounds."""
        bounds = self._config.render.checks
        record = self._store_video(task, pair, one)
        num_passes = task.row.steps * (2 if task.row.true_cfg_scale > 1 else 1)
        num_bytes = sum(file.size for file in record.files)
        self.pace.add(task.row.shape, seconds, one.step_s, num_passes, num_bytes)
        latest = record
        for number in range(1, bounds.retries + 1):
            assert latest.checks is not None
            if not marks_of(latest.checks, bounds):
                break
            again = retry_of(task, number, self._config.render, self._lora, self._models)
            found = self._try_again(again, pair)
            if found is None:
                break
            latest = found
        return record

    def _try_again(self, task: RenderTask, pair: Pair) -> RenderRecord | None:
        """Render a row with another seed, or take what was rendered before; None if it failed."""
        if self._store.exists(record_path(task.identity)):
            found = read_record(self._store, record_path(task.identity), RenderRecord)
            return None if found.failure else found
        row = task.row
        (one,) = self._renderer.render_batch(
            [pair._replace(seed=row.seed)],
            num_frames=row.num_frames,
            steps=row.steps,
            guidance=row.guidance,
            true_cfg_scale=row.true_cfg_scale,
        )
        if isinstance(one, RenderFault):
            return None
        record = self._store_video(task, pair, one)
        put_record(self._store, record)
        return record

    def _put(self, task: RenderTask, record: RenderRecord) -> None:
        put_record(self._store, record)
        self._claims.end(task.identity, "done")
        self._shown.advance(0, note=task.row.id, failed=int(record.failure is not None), whole=1)

    def _failure(self, task: RenderTask, fault: ImageFault | RenderFault) -> RenderRecord:
        return failure_record(task, row_failure(task.row, fault.code, str(fault)), self._attempt)

    def _pair(self, task: RenderTask) -> Pair:
        keyframes = {frame.position: self._keyframe(task, frame) for frame in task.keyframes}
        return Pair(keyframes, task.row.prompt, task.row.seed, task.row.negative_prompt)

    def _keyframe(self, task: RenderTask, frame: Keyframe) -> torch.Tensor:
        """Read an image and cut it to the row's size, as training cuts its frames."""
        try:
            data = self._images.read(frame.path)
        except ImageFault as fault:
            raise _Changed(str(fault)) from fault
        if hashlib.sha256(data).hexdigest() != frame.sha256:
            raise _Changed(f"{frame.path} has other bytes now")
        pixels = decode_keyframe(data, frame.path, task.row.width, task.row.height)
        # A copy: what Pillow enlarged is read-only, and torch warns of what may write to it.
        return torch.from_numpy(np.array(pixels))

    def _store_video(self, task: RenderTask, pair: Pair, one: Rendered) -> RenderRecord:
        made_with = MadeWith(self._config.render, self._models, self._lora, self._alpha)
        return store_video(self._store, task, made_with, one, pair.keyframes, self._renderer.device)
