"""A training step against a bare loop on one batch that stays, in turns: A B B A."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.stats import bootstrap

from benchmarks.data_path.measuring import Row, Scale, run_stages, seconds, settings, write_shapes
from benchmarks.timing import Took, now
from hvkf.ahead import ahead
from hvkf.demo import HPARAMS, NETWORK
from hvkf.progress import Progress
from hvkf.stages import train
from hvkf.training import loop
from hvkf.training.dataset import LatentBatch, TrainSamples, make_loader
from hvkf.training.objective import batch_losses

BATCH_SIZE, NUM_FRAMES = 16, 33
STEPS_OF_BLOCK = 4
GOAL, WAIT_GOAL = 1.05, 0.01


def measure(scale: Scale) -> list[Row]:
    """Time steps of the trainer and of the bare loop in turns."""
    num_blocks = 2 if scale.is_quick else 2 * scale.repeats
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        folder = Path(name)
        write_shapes(folder, 2 * BATCH_SIZE, NUM_FRAMES)
        config = settings(
            folder,
            cache={"bucket_reso": [f"64x64x{NUM_FRAMES}"]},
            data={"batch_size": BATCH_SIZE},
            network=NETWORK,
            hparams={**HPARAMS, "max_train_steps": 10_000},
            validation={"num_items": 0},
        )
        store = run_stages(config, "ingest", "cache", "encode")
        plan = train.plan(config, store)
        measured = Measured(num_blocks)
        instead = patch.object(
            loop.Loop, "_train", lambda own, _, shown: measured.blocks(own, shown)
        )
        with instead, suppress(Enough):
            train.run(plan, store, plan.parts)
    clock, cpu = (
        round(statistics.median(getattr(a, of) / getattr(b, of) for a, b in measured.pairs), 3)
        for of in ("clock_s", "cpu_s")
    )
    intervals = {f"{of}_interval_95": interval(measured.pairs, of) for of in ("clock_s", "cpu_s")}
    details = {**seconds(measured.pairs), **intervals}
    steps = f"step of {BATCH_SIZE} x 64x64x{NUM_FRAMES}"
    wait = round(measured.wait_s / sum(a.clock_s for a, _ in measured.pairs), 4)
    return [
        Row("train", steps, f"<= {GOAL}", GOAL, clock, cpu, details=details),
        Row(
            "train", "share of a step that waits for the loader", f"<= {WAIT_GOAL}", WAIT_GOAL, wait
        ),
    ]


def interval(pairs: list[tuple[Took, Took]], of: str) -> tuple[float, float]:
    """Bootstrap the 95% interval of the median ratio, of clock_s or cpu_s.

    Not by the gate's interval, which is of a mean over videos: a shared machine's pauses are
    outliers, which the median leaves out.
    """
    ratios = np.array([getattr(a, of) / getattr(b, of) for a, b in pairs])
    found = bootstrap((ratios,), np.median, method="percentile", random_state=0)
    low, high = found.confidence_interval
    return round(float(low), 3), round(float(high), 3)


class Enough(Exception):
    """All was measured; the training need not end."""


class Measured:
    """Takes the place of a Loop's training: its own steps and a bare loop's, in turns."""

    def __init__(self, num_blocks: int) -> None:
        self.pairs: list[tuple[Took, Took]] = []
        self.wait_s = 0.0
        self._num_blocks = num_blocks

    def blocks(self, trained: Any, shown: Progress | None) -> None:
        """Measure pairs of blocks of steps; the first pair warms up and does not count."""
        samples = TrainSamples(trained._config, trained._reader, trained._items.train)
        total = trained._num_steps
        loader = make_loader(trained._config, samples, trained._schedule, 0, total)
        resident = samples[next(iter(trained._schedule.draws(0, 1)))]
        trained._saves_at = lambda step: False
        done = 0
        with closing(ahead(iter(loader))) as loaded:
            waited = self._waiting(loaded)
            for block in range(-1, self._num_blocks):
                timed: dict[str, list[Took]] = {"own": [], "bare": []}
                for kind in ("own", "bare", "bare", "own"):
                    begun = now()
                    if kind == "own":
                        trained._num_steps = done + STEPS_OF_BLOCK
                        trained._take_steps(done, waited, shown)
                        done += STEPS_OF_BLOCK
                    else:
                        bare_steps(trained, resident)
                    timed[kind].append(now() - begun)
                if block < 0:
                    self.wait_s = 0.0
                    continue
                self.pairs.append((total_of(timed["own"]), total_of(timed["bare"])))
        raise Enough

    def _waiting(self, loaded: Iterator[LatentBatch]) -> Iterator[LatentBatch]:
        while True:
            begun_s = time.perf_counter()
            batch = next(loaded)
            self.wait_s += time.perf_counter() - begun_s
            yield batch


def total_of(blocks: list[Took]) -> Took:
    """Add times up."""
    return Took(sum(block.clock_s for block in blocks), sum(block.cpu_s for block in blocks))


def bare_steps(trained: Any, batch: LatentBatch) -> None:
    """Take steps of forward, backward and optimizer alone."""
    trainer = trained._trainer
    for _ in range(STEPS_OF_BLOCK):
        losses = batch_losses(
            trainer.transformer, batch, dtype=trainer.dtype, guidance=1.0, weighting="none"
        )
        losses.mean().backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
