"""Accelerate for one training: devices, precision, ranks, and trackers that show its figures."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)

from hvkf.config import Config
from hvkf.distributed import is_launched
from hvkf.errors import BadInput
from hvkf.storage import Store
from hvkf.training.gang import TIMEOUT
from hvkf.training.runs import run_folder
from hvkf.training.sharding import Sharding, take_sharding

TENSORBOARD = "tensorboard"
PACKAGES = {TENSORBOARD: "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "hvkf"


@contextmanager
def accelerated(config: Config, logs: Path) -> Iterator[tuple[Accelerator, Sharding]]:
    """Set accelerate up for this configuration, and leave nothing of it behind.

    Args:
        config: Precision, trackers, ranks' settings.
        logs: Folder on this machine for the trackers' files.

    Yields:
        The accelerator, and what the launcher wants to be sharded.

    Raises:
        BadInput: this machine lacks what the configuration asks for.
    """
    _check_trackers(config.experiment.trackers)
    has_gpu = torch.cuda.is_available()
    if config.hparams.mixed_precision == "fp16" and not has_gpu:
        raise BadInput(
            "hparams.mixed_precision=fp16 needs a GPU: set it to bf16 or no on this machine."
        )
    ddp = config.ddp_kwargs
    sharding = take_sharding()
    try:
        accelerator = Accelerator(
            mixed_precision=config.hparams.mixed_precision,
            cpu=not has_gpu,
            log_with=list(config.experiment.trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(logs), logging_dir=str(logs)),
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    find_unused_parameters=ddp.find_unused_parameters,
                    gradient_as_bucket_view=ddp.gradient_as_bucket_view,
                    static_graph=ddp.static_graph,
                ),
                # A process alone has no group, and accelerate fails on a backend for one.
                InitProcessGroupKwargs(
                    backend=ddp.backend if is_launched() else None, timeout=TIMEOUT
                ),
            ],
        )
    except (ValueError, ImportError) as fault:
        raise BadInput(
            "accelerate cannot be set up with experiment.trackers="
            f"{list(config.experiment.trackers)}, hparams.mixed_precision="
            f"{config.hparams.mixed_precision} and ddp_kwargs.backend={ddp.backend}: {fault}"
        ) from None
    # The loop weighs each sample itself; a launcher's environment must not divide once more.
    accelerator.gradient_accumulation_steps = 1
    try:
        yield accelerator, sharding if accelerator.num_processes > 1 else Sharding.NOTHING
        # Not after a fault: leaving the group could wait for ranks that are stuck.
        accelerator.end_training()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _check_trackers(trackers: tuple[str, ...]) -> None:
    for name in trackers:
        if name not in PACKAGES:
            raise BadInput(
                f"There is no experiment.trackers {name!r}: use {', '.join(PACKAGES)}, or none."
            )
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise BadInput(
                f"experiment.trackers names {name}, which is not installed: pip install "
                f"'hvkf[{name}]', or leave it out."
            )


def begin_tracking(accelerator: Accelerator, run_id: str, settings: dict[str, Any]) -> None:
    """Tell the trackers what is trained."""
    accelerator.init_trackers(
        PROJECT,
        config=dict(_plain(settings)),
        init_kwargs={
            "wandb": {"name": run_id, "id": run_id, "resume": "allow"},
            "mlflow": {"run_name": run_id},
        },
    )


def _plain(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float]]:
    """Flatten settings to what every tracker takes."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _plain(value, f"{prefix}{name}.")
        else:
            is_plain = isinstance(value, str | int | float)
            yield f"{prefix}{name}", value if is_plain else str(value)


def upload_logs(accelerator: Accelerator, store: Store, run_id: str, logs: Path) -> None:
    """Bring what trackers wrote on this machine into the run's folder."""
    for tracker in accelerator.trackers:
        if tracker.name == TENSORBOARD:
            tracker.writer.flush()
    for file in sorted(logs.rglob("*")):
        if file.is_file():
            path = f"{run_folder(run_id)}/logs/{file.relative_to(logs).as_posix()}"
            store.upload(file, path)
