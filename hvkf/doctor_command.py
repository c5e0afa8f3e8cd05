"""The command that says what a machine, a configuration or a cluster has and lacks."""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from hvkf.command_options import EPILOG, ConfigOption, WorkspaceOption, read_config
from hvkf.errors import BadInput
from hvkf.shown import counted


def doctor(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at the cluster and S3 of --config instead.")
    ] = False,
) -> None:
    """Says what this machine, a configuration (--config) or a cluster has and lacks."""
    from hvkf.doctor import examine, examine_settings

    has_settings = cluster or bool(config or workspace or context.obj)
    settings = read_config(context, config, workspace) if has_settings else None
    lines: list[Iterable[str]] = []
    if cluster and settings is not None:
        from hvkf.doctor_cluster import examine_cluster  # importing the client takes a second

        lines.append(examine_cluster(settings))
    else:
        lines.append(examine())
    if settings is not None:
        lines.append(examine_settings(settings))
    if "PREFECT_API_URL" in os.environ:
        lines.append(_examine_server())
    lacking = 0
    for line in itertools.chain(*lines):
        print(line, flush=True)
        lacking += line.startswith("lacks")
    if lacking and settings is not None:
        raise BadInput(f"What is lacking (see above): {counted(lacking, 'thing')}.")


def _examine_server() -> Iterator[str]:
    from flows.server_check import examine_server  # importing Prefect takes seconds

    yield from examine_server()


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command(epilog=EPILOG)(doctor)
