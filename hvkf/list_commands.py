"""Commands that list what a workspace has: its training runs, and its rendered manifests."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hvkf.command_options import ConfigOption, WorkspaceOption, read_config
from hvkf.storage import Store, open_existing

if TYPE_CHECKING:
    from hvkf.render_list import RenderList
    from hvkf.run_list import RunList

SHOWN = 20
RUNS_EPILOG = (
    "Such as `hvkf runs --workspace s3://bucket/prefix`. A run that is *stopped* goes on by the "
    "command that began it; `hvkf picture train runs/RUN/losses.jsonl` draws its losses; `hvkf "
    "registry promote` puts one into use. docs/recovery.md says what each state means."
)
RENDERS_EPILOG = (
    "Such as `hvkf renders --workspace s3://bucket/prefix`; then `hvkf fetch RENDER FOLDER` "
    "downloads its videos. One that is *stopped* goes on by the command that began it; `hvkf "
    "submit --only-failed` tries rows again that failed. docs/rendering.md says more."
)
LimitOption = Annotated[
    int, typer.Option(min=0, help="Show so many of the newest; 0 shows all of them.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _existing(context: typer.Context, config: str | None, workspace: str | None) -> Store:
    return open_existing(read_config(context, config, workspace).workspace)


def runs(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    limit: LimitOption = SHOWN,
    as_json: JsonOption = False,
) -> None:
    """Lists training runs, newest first: state, steps, loss, the gate's verdict, cost.

    \b
    waiting   planned, nothing saved yet      running   a process is at work
    stopped   goes on when it is run again    failed    a night ended so
    done      trained to its end
    """
    store = _existing(context, config, workspace)
    from hvkf.run_list import list_runs  # SciPy, behind the gate, takes a second

    _print(list_runs(store, limit or None), as_json=as_json)


def renders(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    limit: LimitOption = SHOWN,
    as_json: JsonOption = False,
) -> None:
    """Lists rendered manifests, newest first: state, videos, failed rows, cost.

    \b
    waiting   planned, no row done yet        running   a worker is at work
    stopped   goes on when it is run again    failed    too many rows failed
    done      its gallery and results are there
    """
    store = _existing(context, config, workspace)
    from hvkf.render_list import list_renders  # Arrow takes half a second

    _print(list_renders(store, limit or None), as_json=as_json)


def _print(found: "RunList | RenderList", *, as_json: bool) -> None:
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    for line in found.lines():
        print(line)
    if found.num_older:
        print(f"and {found.num_older} older: --limit 0 shows all")
    for path in found.foreign:
        print(f"not of hvkf, left alone: {path}")
    for sentence in found.damaged:
        print(f"damaged: {sentence}", file=sys.stderr)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command(epilog=RUNS_EPILOG)(runs)
    app.command(epilog=RENDERS_EPILOG)(renders)
