"""What the command line itself takes, in front of all commands: version, quiet, verbose."""

import inspect
from typing import Annotated

import typer

from hvkf.code_version import code_version
from hvkf.errors import ConfigError
from hvkf.verbosity import Verbosity, set_verbosity


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hvkf {code_version()}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version, with a digest of the code, and stop.",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say errors and results only; before or after COMMAND.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say more: what is tried again, whole tracebacks.")
    ] = False,
) -> None:
    # Typer shows the app's own help in place of a docstring.
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose are opposites: give one of them.")
    if quiet or verbose:
        set_verbosity(Verbosity.QUIET if quiet else Verbosity.VERBOSE)


def tell_whole_sentences(commands: typer.Typer) -> None:
    """Give each command in a list its first sentence: made up from its help, it would be cut."""
    for command in commands.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.short_help = " ".join(text.partition("\n\n")[0].split())
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            group.short_help = str(group.typer_instance.info.help)
            tell_whole_sentences(group.typer_instance)
