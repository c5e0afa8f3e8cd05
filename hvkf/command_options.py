"""What the commands of the command line share: their options, and how settings are read."""

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from hvkf.config import Config
from hvkf.config_file import check_config, load_config
from hvkf.errors import ConfigError

EPILOG = (
    "Settings come from the YAML file and from overrides such as --hparams.learning_rate=1e-4; "
    "docs/configuration.md lists all of them."
)
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "--config_path", help="YAML file of settings; - reads standard input."
    ),
]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", help="A folder or s3://bucket/prefix.")
]


def read_config(context: typer.Context, file: str | None, workspace: str | None) -> Config:
    """Read the settings that a command was given."""
    overrides = list(context.obj or ())
    if workspace is not None:
        overrides.append(f"--workspace={workspace}")
    if file == "-":
        return check_config(yaml.safe_load(sys.stdin.read()) or {}, "standard input")
    if file is None and not overrides:
        raise ConfigError("Give --config FILE; configs/ has files to begin with.")
    return load_config(Path(file) if file is not None else None, overrides)
