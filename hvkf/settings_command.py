"""The command that lists settings, and the lists of the most used ones in the stages' help."""

import json
import textwrap
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hvkf.command_options import EPILOG, refuse_settings
from hvkf.config import Config
from hvkf.config_file import known_keys
from hvkf.errors import BadInput
from hvkf.shown import shown

WIDTH = 78
MOST_USED = {
    "ingest": (
        *("ingest.metadata", "ingest.base_dir", "ingest.dataset", "ingest.target_fps"),
        *("ingest.scene_split", "ingest.holdout_fraction", "ingest.max_failed_fraction"),
    ),
    "cache": (
        *("cache.bucket_reso", "cache.frames", "cache.min_bucket_count", "cache.no_upscale"),
        *("ingest.dataset", "jobs.cache.workers"),
    ),
    "encode": (
        *("model.pretrained_model_name_or_path", "encode.precision", "encode.batch_size"),
        *("ingest.dataset", "jobs.encode.workers"),
    ),
    "train": (
        *("experiment.run_id", "hparams.max_train_steps", "hparams.num_train_epochs"),
        *("hparams.learning_rate", "hparams.optimizer_type", "hparams.mixed_precision"),
        *("data.batch_size", "hparams.gradient_accumulation_steps", "network.lora_rank"),
        *("network.lora_alpha", "network.lora_weights", "checkpointing.save_every_n_steps"),
        "jobs.train.workers",
    ),
    "evaluate": (
        *("evaluate.num_pairs", "evaluate.steps", "evaluate.precision", "evaluate.extras"),
        *("experiment.run_id", "jobs.evaluate.workers"),
    ),
    "render": (
        *("render.manifest", "render.lora", "render.width", "render.height", "render.num_frames"),
        *("render.steps", "render.guidance", "render.seed", "render.fps", "render.precision"),
        "jobs.render.workers",
    ),
}


def help_of(stage: str) -> str:
    """Write a stage's most used settings as the end of its help."""
    listed = "\n\n".join(_entry(key) for key in MOST_USED[stage])
    return (
        f"Its most used settings, with their defaults:\n\n{listed}\n\n"
        f"`hvkf settings {stage if stage != 'train' else 'hparams'}` lists them all by section. "
        f"{EPILOG}"
    )


def _entry(key: str) -> str:
    """Write a setting as lines that help does not wrap again."""
    lines = [f"  --{key}={_default(field_of(key))}"]
    lines += textwrap.wrap(
        field_of(key).description or "",
        WIDTH,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
    )
    return "\b\n" + "\n".join(lines)


def field_of(key: str) -> FieldInfo:
    """Find a setting by its dotted key."""
    model: Any = Config
    *parents, name = key.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation
    field: FieldInfo = model.model_fields[name]
    return field


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "null"
    return field.default if isinstance(field.default, str) else json.dumps(field.default)


def settings(
    context: typer.Context,
    section: Annotated[
        str | None, typer.Argument(help="Such as render or hparams.ema; default: all sections.")
    ] = None,
) -> None:
    """Lists settings with their defaults: those of a section, or the sections."""
    refuse_settings(context, "it lists settings and their defaults")
    if section is None:
        for name, field in Config.model_fields.items():
            print(f"{name:<14} {_about(field)}")
        print("\n`hvkf settings SECTION` lists a section's settings.")
        return
    keys = [key for key in known_keys() if f"{key}.".startswith(f"{section}.")]
    if not keys:
        names = ", ".join(Config.model_fields)
        raise BadInput(f"There is no section {shown(section)}: valid are {names}.")
    for key in keys:
        if not _is_section(field_of(key)):
            print("\n".join(_entry(key).splitlines()[1:]))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _about(field: FieldInfo) -> str:
    return field.description or (getattr(field.annotation, "__doc__", "") or "").strip()


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command(epilog=EPILOG)(settings)
