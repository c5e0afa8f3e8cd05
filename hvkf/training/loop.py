"""The training loop: steps, validation, checkpoints, and stopping in between without a trace."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from hvkf.ahead import ahead
from hvkf.config import Config
from hvkf.distributed import exit_code_recorded, is_first_of_node
from hvkf.errors import BadInput, Stopped, TryAgain
from hvkf.journal import note_completed
from hvkf.loras import Lora, local_lora_file
from hvkf.progress import Progress, progress
from hvkf.records import RunRecord, TrainResult, digest
from hvkf.scratch import scratch_folder
from hvkf.seeds import seed_for
from hvkf.shown import counted
from hvkf.storage import Store
from hvkf.training.batch_plan import GlobalBatch
from hvkf.training.checkpoints import load_checkpoint, save_checkpoint
from hvkf.training.cost import Stopwatch
from hvkf.training.dataset import (
    LatentBatch,
    LatentReader,
    Schedule,
    TrainSamples,
    make_loader,
)
from hvkf.training.gang import Gang, StopSignal, stop_on_signal
from hvkf.training.items import Items, read_items
from hvkf.training.lineage import write_lineage
from hvkf.training.loading import loader_errors_told
from hvkf.training.losses import (
    VALIDATION_AT,
    last_validation,
    mean_loss,
    read_losses,
    write_losses,
)
from hvkf.training.profiling import Profiler
from hvkf.training.runs import (
    begin_run,
    choose_checkpoint,
    delete_checkpoints,
    list_checkpoints,
    read_result,
    result_path,
    run_folder,
    stale_steps,
    step_name,
)
from hvkf.training.settings import global_batch_size, num_steps
from hvkf.training.sharding import Sharding
from hvkf.training.steps import Figures, Gradients, compute_gradients
from hvkf.training.tracking import accelerated, begin_tracking, upload_logs
from hvkf.training.trainer import Trainer
from hvkf.training.validation import ValidationLoss, chosen_items, validation_loss

LORA_NAME = "pytorch_lora_weights.safetensors"
NUM_DIGITS = 16


class Work(NamedTuple):
    """What to train: settings, the run that they are for, latents, and the LoRA to begin from."""

    config: Config
    run: RunRecord
    sources: Mapping[str, Any]
    lora: Lora


class Machine(NamedTuple):
    """This process among the ranks: its devices, its peers, its signals, its scratch folder."""

    accelerator: Accelerator
    sharding: Sharding
    gang: Gang
    stop: StopSignal
    logs: Path


def train(work: Work, store: Store) -> None:
    """Train a run to its end; every rank calls this.

    Raises:
        BadInput: the configuration or the data cannot work, or the loss is not finite.
        Stopped: SIGTERM or Ctrl-C came to one of the ranks; a checkpoint was saved.
    """
    with (
        exit_code_recorded(),
        stop_on_signal() as stop,
        scratch_folder("train") as logs,
        accelerated(work.config, logs) as (accelerator, sharding),
    ):
        gang = Gang(accelerator.process_index, accelerator.num_processes)
        _check_agreement(gang, work.run)
        gang.on_main(lambda: _begin(work, store))
        if gang.on_main(lambda: read_result(store, work.run.run_id)) is None:
            Loop(work, store, Machine(accelerator, sharding, gang, stop, logs)).run()
        gang.part()


class Loop:
    """One process's part in training a run."""

    def __init__(self, work: Work, store: Store, machine: Machine) -> None:
        config, run, sources, lora = work
        self._config = config
        self._store = store
        self._run = run
        self._accelerator, sharding, self._gang, self._stop, self._logs = machine
        self._stopwatch = Stopwatch(run.run_id, self._gang.num_ranks)  # loading counts
        self._reader = LatentReader(store, sources, config.data)
        self._items = read_items(store, sources, config.data)
        self._schedule, self._num_steps = make_schedule(config, run, self._items, self._gang)
        self._validated = chosen_items(config, self._items.holdout)
        lora_file = local_lora_file(lora, store)
        self._trainer = Trainer(
            config, store, self._accelerator, sharding, self._num_steps, lora_file
        )
        self._figures = Figures(
            store, run.run_id, self._gang, is_scaled=self._accelerator.scaler is not None
        )
        self._log_every = config.experiment.log_every_n_steps
        self._profiler = Profiler(
            config.profiling, store, run.run_id, num_steps=self._num_steps, rank=self._gang.rank
        )

    def run(self) -> None:
        """Train from the newest checkpoint to the end, and record the result."""
        if self._gang.is_main:
            self._say_what()
        start = self._resume()
        begin_tracking(self._accelerator, self._run.run_id, self._run.settings)
        if is_first_of_node():  # each machine's log tells that its ranks live
            with progress("train", self._num_steps, "steps") as shown:
                self._train(start, shown)
        else:
            self._train(start, None)
        self._gang.on_main(self._finish)

    def _say_what(self) -> None:
        schedule = self._schedule
        weights = sum(weight.numel() for weight in self._trainer.weights.values())
        print(
            f"run {self._run.run_id}: {counted(len(self._items.train), 'sample')} in "
            f"{counted(len(schedule.items), 'bucket')}, {counted(self._num_steps, 'step')} of "
            f"{counted(schedule.global_batch_size, 'sample')}, "
            f"{counted(self._gang.num_ranks, 'rank')}, {weights:,} trained weights",
            flush=True,
        )
        if self._config.validation.num_items and not self._validated:
            print("no samples are held out: there will be no validation loss", flush=True)

    def _resume(self) -> int:
        """Load the checkpoint to go on from; return its step."""
        config, run_id = self._config, self._run.run_id
        found = list_checkpoints(self._store, run_id)
        wanted = config.checkpointing.resume_from_checkpoint
        step = choose_checkpoint(found, wanted, run_id)
        if self._gang.is_main:
            for partial in found.partial:
                print(f"skipped {step_name(partial)}: it was not completely written", flush=True)
        if step is None:
            return 0
        self._trainer.restore(load_checkpoint(self._store, run_id, step))
        self._figures.rows = read_losses(self._store, run_id, until=step)
        if self._gang.is_main:
            print(f"run {run_id} goes on from {step_name(step)}", flush=True)
        return step

    def _train(self, start: int, shown: Progress | None) -> None:
        if shown is not None:
            shown.resume(start)
        if any(flag for (flag,) in self._gang.exchange([float(self._stop.is_set)])):
            self._gang.part()
            raise Stopped(f"Told to stop before {step_name(start + 1)}; run it again to go on.")
        samples = TrainSamples(self._config, self._reader, self._items.train)
        loader = make_loader(self._config, samples, self._schedule, start, self._num_steps)
        loading = self._config.data.dataloader_kwargs
        patience_s = loading.timeout_s if loading.num_workers else None
        batches = ahead(iter(loader), timeout_s=patience_s)
        with loader_errors_told(loading), closing(batches) as loaded:
            self._take_steps(start, loaded, shown)

    def _take_steps(
        self, start: int, loaded: Iterator[LatentBatch], shown: Progress | None
    ) -> None:
        planned = self._schedule.steps(start, self._num_steps)
        for done, (epoch, batch, own) in enumerate(planned, start + 1):
            self._profiler.begin(done)
            micro = [next(loaded) for _ in own]
            gradients = self._compute(done, batch, micro)
            # Over the CPU: it waits for no device.
            told = self._gang.exchange([float(self._stop.is_set)])
            is_stopped = any(flag for (flag,) in told)
            row = {
                "step": done,
                "epoch": epoch,
                "bucket": batch.bucket,
                "samples": len(batch.keys),
                "batch": digest(sorted(batch.keys))[:NUM_DIGITS],
                "lr": self._trainer.scheduler.get_last_lr()[0],
            }
            self._trainer.update(done)
            self._figures.add(row, batch, gradients)
            saves = self._saves_at(done) or is_stopped
            if saves or self._validates_at(done) or done % self._log_every == 0:
                self._log(done)
            self._profiler.end(done)
            if saves:
                self._save(done)
            if shown is not None:
                rows = self._figures.rows
                shown.advance(note=f"loss {rows[-1]['loss']:.4f}" if rows else "")
            if is_stopped and done < self._num_steps:
                self._gang.part()
                raise Stopped(f"Told to stop: saved {step_name(done)}; run it again to go on.")

    def _compute(self, step: int, batch: GlobalBatch, micro: list[LatentBatch]) -> Gradients:
        """Compute the gradients of a step; they are those of the mean over the global batch."""
        gang = self._gang
        # Dropout in the LoRA is the only draw left to PyTorch: the same after a stop as without.
        torch.manual_seed(seed_for(self._config.experiment.random_seed, "step", step, gang.rank))
        return compute_gradients(
            self._trainer,
            micro,
            # Gradients are averaged over ranks: their number cancels out.
            weight=gang.num_ranks / len(batch.keys),
            hparams=self._config.hparams,
            accelerator=self._accelerator,
        )

    def _log(self, step: int) -> None:
        """Fetch the figures of the steps up to this one, validate if it is time, and tell all."""
        rows = self._figures.fetch()
        if self._validates_at(step):
            validated = self._validate()
            rows[-1]["validation_loss"] = validated.mean
            for sigma, loss in validated.by_sigma.items():
                rows[-1][f"{VALIDATION_AT}{sigma:g}"] = loss
        for row in rows:
            figures = {name: value for name, value in row.items() if isinstance(value, float)}
            self._accelerator.log(figures, step=row["step"])

    def _validates_at(self, step: int) -> bool:
        """Whether to validate: by the schedule alone, so that a stop in between changes nothing."""
        if not self._validated or not self._config.validation.sigmas:
            return False
        every = self._config.validation.every_n_steps
        if every is None:
            return self._saves_at(step)
        return step % every == 0 or step == self._num_steps

    def _validate(self) -> ValidationLoss:
        with self._trainer.evaluated() as transformer:
            return validation_loss(
                transformer,
                self._reader,
                self._validated,
                config=self._config,
                gang=self._gang,
                device=self._accelerator.device,
                dtype=self._trainer.dtype,
            )

    def _saves_at(self, step: int) -> bool:
        every = self._config.checkpointing.save_every_n_steps
        return step == self._num_steps or (every is not None and step % every == 0)

    def _save(self, step: int) -> None:
        """Write the checkpoint, with the losses before its record; drop those not kept."""
        takes_part = self._gang.is_main or self._trainer.is_sharded
        snapshot = self._trainer.snapshot() if takes_part else None

        def write() -> None:
            assert snapshot is not None
            run_id = self._run.run_id
            save_checkpoint(
                self._store,
                run_id,
                step,
                snapshot,
                alpha=self._config.network.lora_alpha,
                losses_sha256=write_losses(self._store, run_id, self._figures.rows),
            )
            self._stopwatch.put(self._store, step)
            upload_logs(self._accelerator, self._store, run_id, self._logs)
            self._drop_stale(step)

        self._gang.on_main(write)

    def _drop_stale(self, newest: int) -> None:
        checkpointing = self._config.checkpointing
        stale = stale_steps(
            list_checkpoints(self._store, self._run.run_id),
            newest,
            every=checkpointing.save_every_n_steps,
            keep_back=checkpointing.save_last_n_steps,
        )
        delete_checkpoints(self._store, self._run.run_id, stale)

    def _finish(self) -> None:
        """Record the result; its presence says that all is done."""
        self._drop_stale(self._num_steps)
        run_id = self._run.run_id
        checkpoint = f"{run_folder(run_id)}/{step_name(self._num_steps)}"
        result = TrainResult(
            run_id=run_id,
            digest=self._run.digest,
            num_steps=self._num_steps,
            num_epochs=-(-self._num_steps // self._schedule.epoch_steps),
            num_items=len(self._items.train),
            num_holdout=len(self._items.holdout),
            checkpoint=checkpoint,
            lora=f"{checkpoint}/{LORA_NAME}",
            loss=mean_loss(self._figures.rows),
            validation_loss=last_validation(self._figures.rows),
        )
        self._store.put(result_path(run_id), result.to_json())
        note_completed(self._store, result_path(run_id))


def _begin(work: Work, store: Store) -> None:
    """Record the run, and what it is trained on."""
    begin_run(store, work.run)
    write_lineage(store, work.run.run_id, work.sources, work.lora)


def _check_agreement(gang: Gang, run: RunRecord) -> None:
    """Refuse ranks that planned by themselves and found other settings or other data.

    Raises:
        TryAgain: the data set changed between two ranks' plans, or their settings differ.
    """
    if len(set(gang.gather_texts([f"{run.run_id} {run.digest}"]))) > 1:
        gang.part()
        raise TryAgain(
            f"The ranks of run {run.run_id!r} planned different work: give all the same settings, "
            "and start again when nothing changes the data set."
        )


def make_schedule(config: Config, run: RunRecord, items: Items, gang: Gang) -> tuple[Schedule, int]:
    """Lay out this rank's way through the run, and count its steps.

    Raises:
        BadInput: these ranks do not make up the run's global batch.
    """
    batch_size = global_batch_size(config, gang.num_ranks)
    planned = run.settings["data"]["global_batch_size"]
    if batch_size != planned:
        accumulated = config.hparams.gradient_accumulation_steps
        raise BadInput(
            f"The run {run.run_id!r} has {counted(planned, 'sample')} in a step, but "
            f"data.batch_size {config.data.batch_size} x {counted(gang.num_ranks, 'rank')} x "
            f"hparams.gradient_accumulation_steps {accumulated} are {batch_size}: set these, or "
            "jobs.train.workers, to make up the same number."
        )
    epoch_steps, total = num_steps(config, items.counts(), batch_size)
    schedule = Schedule(
        items=items.by_bucket(),
        seed=config.experiment.random_seed,
        global_batch_size=batch_size,
        batch_size=config.data.batch_size,
        epoch_steps=epoch_steps,
        drop_last=config.data.dataloader_kwargs.drop_last,
        shuffle=config.data.streaming_kwargs.shuffle,
        rank=gang.rank,
        num_ranks=gang.num_ranks,
    )
    return schedule, total
