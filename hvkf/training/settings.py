"""What makes two training runs the same work: the settings and data that change their results.

How the work is shared out and computed (ranks, workers, gradient checkpointing, compiled blocks,
where the average and frozen weights lie) and how often it is saved are not part of it: a run may
go on with other ones.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.records import RunRecord, digest
from hvkf.settings.section import Section
from hvkf.training.batch_plan import num_epoch_steps

STAGE_VERSION = 1
NUM_DIGITS = 8
NUM_SHOWN = 6
WHERE_IT_RUNS = {
    "gradient_checkpointing",
    "checkpoint_every_n_blocks",
    "checkpoint_in_main_memory",
    "weights_in_main_memory",
    "gradient_accumulation_steps",
    "compile_blocks",
}
EMA_WORK = {"use_ema", "ema_decay", "ema_update_interval"}


def global_batch_size(config: Config, num_ranks: int) -> int:
    """Count the samples of an optimizer step."""
    accumulated = config.hparams.gradient_accumulation_steps
    return config.data.batch_size * num_ranks * accumulated


class Identities(NamedTuple):
    """What names, by content, the weights and samples that a run begins with."""

    transformer: str
    latents: str
    lora: str | None


def work_settings(config: Config, identities: Identities, num_ranks: int) -> dict[str, Any]:
    """Gather what a run's results depend on, by the names that the configuration uses.

    Args:
        config: The configuration.
        identities: What its paths and names stand for.
        num_ranks: Ranks that share a step.
    """
    network = _set_values(config.network, exclude={"lora_weights"})
    if identities.lora is not None:
        network["lora_weights"] = identities.lora
    hparams = _set_values(config.hparams, exclude={*WHERE_IT_RUNS, "ema"})
    hparams["ema"] = _set_values(config.hparams.ema, include=EMA_WORK)
    loader = config.data.dataloader_kwargs
    return {
        "stage_version": STAGE_VERSION,
        "transformer": identities.transformer,
        "latents": identities.latents,
        "experiment": {"random_seed": config.experiment.random_seed},
        "data": {
            "global_batch_size": global_batch_size(config, num_ranks),
            "dataloader_kwargs": {"drop_last": loader.drop_last},
            "streaming_kwargs": {"shuffle": config.data.streaming_kwargs.shuffle},
        },
        "network": network,
        "hparams": hparams,
        "validation": _set_values(config.validation),
    }


def _set_values(section: Section, **choice: Any) -> dict[str, Any]:
    """List a section's settings but those left out, so that a new optional one changes no run."""
    return section.model_dump(mode="json", exclude_none=True, **choice)


def default_run_id(config: Config, settings: Mapping[str, Any]) -> str:
    """Make up a run's name from the experiment's and its settings."""
    return f"{config.experiment.name}-{digest(dict(settings))[:NUM_DIGITS]}"


def num_steps(config: Config, counts: Collection[int], batch_size: int) -> tuple[int, int]:
    """Count the steps of an epoch and of the run.

    Args:
        config: All settings.
        counts: Samples of each bucket.
        batch_size: The global one: of all ranks and accumulated micro-batches.

    Raises:
        BadInput: there is no complete batch, or neither steps nor epochs are set.
    """
    of_epoch = num_epoch_steps(
        counts, batch_size, drop_last=config.data.dataloader_kwargs.drop_last
    )
    if not of_epoch:
        raise BadInput(
            f"No bucket has the {batch_size} samples of a step (the largest has "
            f"{max(counts, default=0)}), "
            "and data.dataloader_kwargs.drop_last leaves out incomplete ones: set it to false, or "
            "lower data.batch_size."
        )
    hparams = config.hparams
    if hparams.max_train_steps is not None:
        return of_epoch, hparams.max_train_steps
    if hparams.num_train_epochs is None:
        raise BadInput(
            "How long to train is not set: set hparams.num_train_epochs or hparams.max_train_steps."
        )
    return of_epoch, of_epoch * hparams.num_train_epochs


def check_same_work(found: RunRecord, wanted: RunRecord) -> None:
    """Refuse to go on with a run under other settings or on other data.

    Raises:
        BadInput: naming what differs and the fix.
    """
    if found.digest == wanted.digest:
        return
    before, now = dict(_flat(found.settings)), dict(_flat(wanted.settings))
    differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    shown = "; ".join(
        f"{key} was {_brief(before.get(key))} and is {_brief(now.get(key))}"
        for key in differing[:NUM_SHOWN]
    )
    more = len(differing) - NUM_SHOWN
    raise BadInput(
        f"The run {found.run_id!r} was begun as other work: {shown}"
        + (f"; and {more} more" if more > 0 else "")
        + ". Set experiment.run_id to a new name, or set these back."
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
