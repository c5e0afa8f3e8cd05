"""What the commands of the command line share: their options, and how settings are read."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hvkf.config import Config
from hvkf.config_file import load_config
from hvkf.errors import BadInput, ConfigError
from hvkf.scratch import scratch_root
from hvkf.shown import shown, shown_name

GENERAL_OPTIONS = ("--quiet", "--verbose")
OVERRIDE_NAME = re.compile(r"--[^-.\s][^\s]*\.[^\s]*")
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

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do it without asking; scripts need it.")
]


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell `--section.key=value` (or `--section.key value`) from the command's own words.

    Options of all commands (`--quiet`) may stand anywhere; they are put in front.

    Raises:
        ConfigError: a setting without a value.
    """
    words: list[str] = []
    general: list[str] = []
    overrides: list[str] = []
    remaining = iter(arguments)
    for word in remaining:
        name, equals, _ = word.partition("=")
        if word == "--":  # as for any program: what follows is no option
            return [*general, *words, word, *remaining], overrides
        if word in GENERAL_OPTIONS:
            general.append(word)
        elif not OVERRIDE_NAME.fullmatch(name):
            words.append(word)
        elif equals:
            overrides.append(word)
        else:
            value = next(remaining, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{shown(name)} has no value: write {shown_name(name)}=VALUE.")
            overrides.append(f"{name}={value}")
    return [*general, *words], overrides


def read_config(context: typer.Context, file: str | None, workspace: str | None) -> Config:
    """Read the settings that a command was given; what stands beside a file wins over it."""
    scratch_root()  # that TMPDIR is not there is said before anything is done
    overrides = list(context.obj or ())
    if workspace is not None:
        overrides.append(f"--workspace={workspace}")
    if file is None and not overrides:
        raise ConfigError("Give --config FILE; configs/ has files to begin with.")
    if file == "-":
        return load_config(None, overrides, from_input=True)
    return load_config(Path(file).expanduser() if file is not None else None, overrides)


def refuse_settings(context: typer.Context, instead: str) -> None:
    """Refuse overrides where a command would not look at them.

    Raises:
        ConfigError: there are some; `instead` says where the command's settings come from.
    """
    if overrides := list(context.obj or ()):
        name = overrides[0].partition("=")[0]
        raise ConfigError(f"`{context.command_path}` does not look at {shown(name)}: {instead}.")


def ask_before_deleting(question: str, *, yes: bool) -> None:
    """Ask a person whether to delete what the question names.

    Raises:
        BadInput: nobody is there to be asked, and `yes` was not given.
        typer.Abort: the answer was no.
    """
    if yes:
        print(f"{question} Yes, by --yes.")
        return
    if not sys.stdin.isatty():
        raise BadInput(f"{question} Nobody is there to be asked: add --yes to do it.")
    typer.confirm(question, abort=True)
