"""The command that runs the whole chain on data of its own."""

from pathlib import Path
from typing import Annotated

import typer

from hvkf.command_options import refuse_settings


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""

    @app.command()
    def demo(
        context: typer.Context,
        folder: Annotated[Path, typer.Argument(help="Where to put data, checkpoint and results.")],
        prepare_only: Annotated[
            bool, typer.Option(help="Write data, checkpoint and settings, and run nothing.")
        ] = False,
    ) -> None:
        """Runs the whole chain on moving shapes and real clips with a tiny model."""
        refuse_settings(context, "it writes its own to FOLDER/config.yaml, for `hvkf run --config`")
        from hvkf.demo import prepare

        config = prepare(folder)
        if not prepare_only:
            app(args=["run", "--config", str(config)], standalone_mode=False)
