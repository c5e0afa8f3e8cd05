"""The command that says what a configuration needs, before anything is loaded or submitted."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvkf.command_options import EPILOG, ConfigOption, WorkspaceOption, read_config
from hvkf.config import Config

if TYPE_CHECKING:
    from hvkf.estimate.parts import Shapes


class SharedOut(StrEnum):
    """What training shares out between its GPUs."""

    NOTHING = "nothing"
    TRAINED = "trained"
    ALL = "all"


def plan(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    gpu: Annotated[
        str,
        typer.Option(
            help="h100-80gb, h200-141gb, a100-80gb, a100-40gb, l40s-48gb or rtx4090-24gb."
        ),
    ] = "h100-80gb",
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs that train together; left out, as jobs.train says."),
    ] = None,
    sharding: Annotated[
        SharedOut,
        typer.Option(
            help="What these share out: nothing (DDP), the trained weights, or all (FSDP2)."
        ),
    ] = SharedOut.NOTHING,
    utilisation: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Share of the GPU's peak arithmetic that is reached."),
    ] = 0.4,
    clips: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples of each bucket; left out, the workspace's catalog, or 1000."
        ),
    ] = None,
    videos: Annotated[int, typer.Option(min=1, help="Videos to render.")] = 100,
    options: Annotated[
        bool,
        typer.Option("--options", help="Count what makes stages smaller even where they fit."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Says whether a configuration fits a kind of GPU and what it costs, before it is submitted.

    Counts, for the configured model and each bucket: weights, peak memory of encoding, training
    and rendering, arithmetic, stored bytes, and GPU-hours. It loads no weights and needs no GPU:
    the real code runs on tensors without values. Where training or rendering does not fit, it
    counts what each memory option would change, and how to write it.

    (`hvkf STAGE plan` is another thing: it divides one stage's work into parts.)

    \b
    hvkf plan --config configs/hunyuan-720p.yaml --gpu a100-80gb --gpus 8
    hvkf plan --config mine.yaml --data.batch_size=2 --clips 5000 --json
    """
    settings = read_config(context, config, workspace)
    from hvkf.estimate.amounts import find_amounts

    amounts = find_amounts(settings, clips, videos)  # refuses before torch is imported
    from rich.console import Console

    from hvkf.estimate.cards import card_named
    from hvkf.estimate.plan import Machine, make_plan
    from hvkf.estimate.tables import print_plan
    from hvkf.training.sharding import Sharding, check_sharding

    check_sharding(settings.hparams, Sharding[sharding.name])
    num_ranks = gpus or settings.jobs.train.num_ranks
    machine = Machine(card_named(gpu), num_ranks, Sharding[sharding.name], utilisation)
    shapes = _shapes(settings)
    errors = Console(file=sys.stderr)
    with errors.status("Counting") as status:
        made = make_plan(
            settings,
            shapes,
            machine,
            amounts,
            all_options=options,
            say=lambda text: status.update(f"Counting {text}"),
        )
    if as_json:
        print(json.dumps(made.as_json(), indent=1))
    else:
        print_plan(made, Console())


def _shapes(config: Config) -> "Shapes":
    """Read the model's sizes from its folder; a hub id stands for HunyuanVideo as published."""
    from hvkf.estimate.parts import published_shapes, shapes_of_folder
    from hvkf.model_source import model_folder_or_hub_id
    from hvkf.storage import open_folder

    source = model_folder_or_hub_id(config.model, open_folder(config.workspace))
    folder = Path(source)
    return shapes_of_folder(folder) if folder.is_dir() else published_shapes()


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command(epilog=EPILOG)(plan)
