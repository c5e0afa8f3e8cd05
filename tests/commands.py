"""Running a command in this process, as the command line does."""

import shlex

from hvkf.cli import app
from hvkf.command_options import split_overrides


def run_command(*arguments: str) -> None:
    """Run a command; its faults are raised."""
    words, overrides = split_overrides(arguments)
    app(args=words, obj=overrides, standalone_mode=False)


def run_line(line: str) -> None:
    """Run a command as it stands in a document, `hvkf` in front."""
    program, *arguments = shlex.split(line)
    assert program == "hvkf"
    run_command(*arguments)
