"""Commands for those who come from the reference: its caches, its inference, LoRAs for others."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hvkf.command_options import EPILOG, ConfigOption, WorkspaceOption, read_config
from hvkf.config_file import load_config
from hvkf.errors import BadInput, ConfigError
from hvkf.settings.experiment import ModelConfig
from hvkf.shown import shown
from hvkf.storage import Store, open_folder, open_store
from hvkf.uses import at_work


class LoraLayout(StrEnum):
    """What a LoRA can be written for."""

    DIFFUSERS = "diffusers"
    REFERENCE = "reference"
    COMFYUI = "comfyui"
    FUSED = "fused"


class Precision(StrEnum):
    """The type of a model's weights."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


LORA_HELP = (
    "registry:NAME, run:RUN_ID, workspace:PATH, a .safetensors or .sft file, or a folder with one."
)
LoraOption = Annotated[str, typer.Option(help=f"{LORA_HELP} Or none.")]
ModelOption = Annotated[
    str | None, typer.Option(help="A hub id or a folder; left out, HunyuanVideo's hub id.")
]
PrecisionOption = Annotated[Precision, typer.Option(help="Type of the models' weights.")]
AlphaOption = Annotated[
    float | None, typer.Option(min=0, help="Alpha of a LoRA file that records none.")
]


def import_cache(
    context: typer.Context,
    folders: Annotated[
        list[str], typer.Argument(help="Folders that its tools wrote, or a folder of such.")
    ],
    dataset: Annotated[str, typer.Option(help="Data set to make, or to add to.")],
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    same_within: Annotated[
        float,
        typer.Option(min=0, help="Records of equal text whose latents differ less are repeats."),
    ] = 0.1,
) -> None:
    """Turns the reference's MDS caches (of latents or of videos) into a data set."""
    context.obj = [*(context.obj or ()), f"--ingest.dataset={dataset}"]
    settings = read_config(context, config, workspace)
    from hvkf.stages.import_cache import import_caches  # torch and `streaming`

    store = open_store(settings.workspace)
    with at_work(store, "hvkf import-cache"):
        print(import_caches(settings, store, folders, same_within).text)


def infer(
    context: typer.Context,
    lora: LoraOption,
    frame1: Annotated[Path, typer.Option(help="Image that the video begins with.")],
    frame2: Annotated[Path, typer.Option(help="Image that it ends with.")],
    prompt: Annotated[str, typer.Option(help="What happens in between; may be empty.")],
    model: ModelOption = None,
    frames: Annotated[int, typer.Option(help="Number of frames, 4k+1.")] = 77,
    height: Annotated[int, typer.Option(help="Height in pixels, a multiple of 16.")] = 720,
    width: Annotated[int, typer.Option(help="Width in pixels, a multiple of 16.")] = 1280,
    steps: Annotated[int, typer.Option(help="Sampling steps; 30 are the least.")] = 50,
    guidance: Annotated[float, typer.Option(help="Embedded guidance.")] = 6.0,
    seed: Annotated[int | None, typer.Option(help="Seed; left out, one is drawn and said.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the video.")] = None,
    lora_alpha: AlphaOption = None,
    precision: PrecisionOption = Precision.BF16,
    workspace: WorkspaceOption = None,
) -> None:
    """Renders one video from two images, as the reference's inference script does."""
    from hvkf.infer import Request, infer  # torch

    request = Request(
        lora=lora,
        lora_alpha=lora_alpha,
        frame1=frame1,
        frame2=frame2,
        prompt=prompt,
        frames=frames,
        height=height,
        width=width,
        steps=steps,
        guidance=guidance,
        seed=seed,
        precision=precision,
        output=output,
    )
    done = infer(_model_settings(context, model), _store_for(lora, workspace), request)
    alpha = "" if done.lora_alpha is None else f", LoRA alpha {done.lora_alpha:g}"
    print(f"the video is {done.video} (seed {done.seed}{alpha})")


def export_lora(
    context: typer.Context,
    lora: Annotated[str, typer.Argument(help=LORA_HELP)],
    out: Annotated[Path, typer.Argument(help="A new file, or a folder for it.")],
    layout: Annotated[LoraLayout, typer.Option("--format", help="For which program.")],
    model: ModelOption = None,
    lora_alpha: AlphaOption = None,
    precision: PrecisionOption = Precision.BF16,
    workspace: WorkspaceOption = None,
) -> None:
    """Writes a LoRA for the reference, diffusers or ComfyUI, or fused into its transformer."""
    from hvkf.loras import local_lora_file, resolve_lora
    from hvkf.model import lora_export  # torch
    from hvkf.model.precision import TORCH_DTYPES
    from hvkf.model_source import model_folder_or_hub_id

    settings = _model_settings(context, model)
    store = _store_for(lora, workspace)
    file = local_lora_file(resolve_lora(lora, store), store)
    if file is None:
        raise BadInput("There is no LoRA to export: name a file, a folder or run:RUN_ID.")
    if layout == LoraLayout.FUSED:
        source = model_folder_or_hub_id(settings, store)
        dtype = TORCH_DTYPES[precision]
        base = lora_export.Base(source, settings.revision, settings.variant, dtype)
        exported = lora_export.export_fused(file, out, lora_alpha, base)
    else:
        exported = lora_export.export_lora(file, out, layout, lora_alpha)
    print(f"wrote {exported.path}")
    for note in exported.notes:
        print(f"note: {note}")


def _model_settings(context: typer.Context, model: str | None) -> ModelConfig:
    """Read the model's settings: --model, and overrides such as --model.attention=sdpa."""
    overrides = list(context.obj or ())
    for override in overrides:
        name = override.partition("=")[0]
        if not name.startswith("--model."):
            raise ConfigError(
                f"`{context.command_path}` looks at --model settings only, not at {shown(name)}."
            )
    if model is not None:
        overrides.append(f"--model.pretrained_model_name_or_path={model}")
    return load_config(None, overrides).model


def _store_for(lora: str, workspace: str | None) -> Store:
    """Open the workspace that a LoRA lies in; without one, paths are of this machine."""
    if workspace is not None:
        return open_store(workspace)
    if lora.startswith(("registry:", "run:", "workspace:")):
        raise ConfigError(f"{lora} lies in a workspace: give --workspace FOLDER or s3://...")
    return open_folder(".")


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command(name="import-cache", epilog=EPILOG)(import_cache)
    app.command(epilog=EPILOG)(infer)
    app.command(name="export-lora", epilog=EPILOG)(export_lora)
