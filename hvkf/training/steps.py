"""What the steps of a run gave, kept on the device until they are asked for.

Reading a number from a GPU makes the host wait for all work given to it. Steps therefore leave
their losses and gradient norms there, and `Figures` fetches those of several steps in one copy.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator

from hvkf.errors import BadInput
from hvkf.settings.training import HparamsConfig
from hvkf.storage import Store
from hvkf.training.batch_plan import GlobalBatch
from hvkf.training.dataset import LatentBatch
from hvkf.training.gang import Gang
from hvkf.training.losses import Row
from hvkf.training.objective import batch_losses
from hvkf.training.runs import list_checkpoints, step_name
from hvkf.training.trainer import Trainer


class Gradients(NamedTuple):
    """What a step's forward and backward passes gave this rank; the tensors lie on its device."""

    keys: tuple[tuple[str, ...], ...]
    losses: tuple[torch.Tensor, ...]
    norm: torch.Tensor


class _Taken(NamedTuple):
    """A step that was taken: its row without the figures, which are still on the device."""

    row: Row
    batch: GlobalBatch
    gradients: Gradients


def compute_gradients(
    trainer: Trainer,
    micro: Sequence[LatentBatch],
    *,
    weight: float,
    hparams: HparamsConfig,
    accelerator: Accelerator,
) -> Gradients:
    """Compute the gradients of a step, without waiting for the device.

    Args:
        trainer: What is trained.
        micro: This rank's micro-batches; borrowed ones count for nothing.
        weight: Weight of a sample's loss.
        hparams: Says guidance and weighting.
        accelerator: Whose device and precision are used.
    """
    keys, kept = [], []
    for number, part in enumerate(micro):
        with trainer.synchronised(number == len(micro) - 1):
            losses = batch_losses(
                trainer.model,
                part.to(accelerator.device),
                dtype=trainer.dtype,
                guidance=hparams.guidance_scale,
                weighting=hparams.flow_match.weighting_scheme,
            )
            accelerator.backward(losses.sum() * (0.0 if part.borrowed else weight))
        if not part.borrowed:
            keys.append(part.keys)
            kept.append(losses.detach())
    return Gradients(tuple(keys), tuple(kept), trainer.gradient_norm())


class Figures:
    """The rows of a run's steps; those of the newest steps may lie on the device yet."""

    def __init__(self, store: Store, run_id: str, gang: Gang, *, is_scaled: bool) -> None:
        """Begin without rows.

        Args:
            store: Where the run's checkpoints are.
            run_id: The run.
            gang: The ranks; all must fetch after the same steps.
            is_scaled: Whether losses are scaled, so that infinite gradients are skipped.
        """
        self.rows: list[Row] = []
        self._store = store
        self._run_id = run_id
        self._gang = gang
        self._is_scaled = is_scaled
        self._taken: list[_Taken] = []

    def add(self, row: Row, batch: GlobalBatch, gradients: Gradients) -> None:
        """Remember a step that was taken."""
        self._taken.append(_Taken(row, batch, gradients))

    def fetch(self) -> list[Row]:
        """Wait for the device, and return the rows of the steps since the last call.

        Raises:
            BadInput: a loss or the gradients of one of these steps are not finite.
        """
        taken, self._taken = self._taken, []
        if not taken:
            return []
        on_device = [tensor for step in taken for tensor in _figures_of(step.gradients)]
        values = iter(torch.cat(on_device).tolist())
        own = [_Own.read(step.gradients, values, is_scaled=self._is_scaled) for step in taken]
        sent = [figure for step in own for figure in (step.loss, float(step.is_faulty))]
        told = self._gang.exchange(sent)
        rows = []
        for number, step in enumerate(taken):
            of_ranks = [values[2 * number : 2 * number + 2] for values in told]
            if any(is_faulty for _, is_faulty in of_ranks):
                self._refuse(step, self._gang.gather_texts(own[number].faulty))
            loss = math.fsum(part for part, _ in of_ranks) / len(step.batch.keys)
            rows.append({**step.row, "loss": loss, "grad_norm": own[number].norm})
        self.rows += rows
        return rows

    def _refuse(self, step: _Taken, faulty: list[str]) -> None:
        """End the training at a step whose loss or gradients are not finite."""
        self._gang.part()
        whole = list_checkpoints(self._store, self._run_id).whole
        good = step_name(whole[-1]) if whole else "none"
        what = "loss" if faulty else "gradient"
        raise BadInput(
            f"The {what} is not finite at step {step.row['step']} (items "
            f"{', '.join(faulty or step.batch.keys)}, bucket {step.batch.bucket}); the last good "
            f"checkpoint is {good}. Look at these items; or lower hparams.learning_rate, or set "
            "hparams.max_grad_norm, with another run_id."
        )


class _Own(NamedTuple):
    """This rank's figures of one step."""

    loss: float
    norm: float
    faulty: list[str]
    is_faulty: bool

    @classmethod
    def read(cls, gradients: Gradients, values: Iterator[float], *, is_scaled: bool) -> "_Own":
        """Take a step's figures from those that were fetched, in the order of `_figures_of`."""
        loss, faulty = 0.0, []
        for keys in gradients.keys:
            losses = [next(values) for _ in keys]
            loss += math.fsum(losses)
            faulty += [
                key for key, value in zip(keys, losses, strict=True) if not math.isfinite(value)
            ]
        norm = next(values)
        return cls(loss, norm, faulty, bool(faulty) or not (is_scaled or math.isfinite(norm)))


def _figures_of(gradients: Gradients) -> Iterator[torch.Tensor]:
    yield from gradients.losses
    yield gradients.norm.reshape(1).float()
