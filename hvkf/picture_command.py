"""The command that draws what a stage made."""

from pathlib import Path
from typing import Annotated

import typer

from hvkf.command_options import EPILOG, refuse_settings
from hvkf.storage import open_store


def picture(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="cache, train, evaluate or render.")],
    result: Annotated[str, typer.Argument(help="The result's path, as the stage's summary says.")],
    workspace: Annotated[str, typer.Option(help="A folder or s3://bucket/prefix.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write; left out, prints a data: address.")
    ] = None,
) -> None:
    """Draws a stage's result: buckets, losses, keyframes beside what was made, or videos."""
    refuse_settings(context, "a picture has none")
    from hvkf.stages.pictures import as_data_uri, draw

    drawn = draw(stage, result, open_store(workspace))
    if output is None:
        print(as_data_uri(drawn))
    else:
        output.write_bytes(drawn[0])


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command(epilog=EPILOG)(picture)
