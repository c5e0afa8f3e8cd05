"""The command that lists garbage by kind, and deletes it when asked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from hvkf.command_options import (
    EPILOG,
    ConfigOption,
    WorkspaceOption,
    YesOption,
    ask_before_deleting,
    read_config,
)
from hvkf.shown import counted
from hvkf.storage import open_existing

if TYPE_CHECKING:
    from hvkf.garbage import GarbageFile


def gc(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    delete: Annotated[bool, typer.Option(help="Remove them, instead of only listing.")] = False,
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="Leave younger ones: a running job may still need them.")
    ] = 24.0,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Kinds that go on request alone: other-latents, abandoned-run, refused-run. May "
            "be given several times."
        ),
    ] = None,
    unused_for_days: Annotated[
        float, typer.Option(min=0, help="Of kinds on request, leave what was touched since.")
    ] = 30.0,
    yes: YesOption = False,
) -> None:
    """Lists what nothing refers to, by kind, and removes it if asked.

    Nothing that a commit, a registered name, a plan or a running process uses: docs/recovery.md.
    """
    # Here: SciPy, behind the gate, takes a second.
    from hvkf import garbage
    from hvkf.garbage_sweep import refuse_while_at_work

    store = open_existing(read_config(context, config, workspace).workspace)
    print(f"workspace {store.url}")
    unused_for_s = unused_for_days * 24 * 3600
    found = garbage.find_garbage(store, older_than_hours * 3600, unused_for_s=unused_for_s)
    for path in found.foreign:
        print(f"not of hvkf, left alone: {path}")
    going = found.only(set(also or ()))
    for kind, of_kind in found.kinds().items():
        on_request = kind in garbage.ON_REQUEST and kind not in (also or ())
        how = f" (on request: --also {kind})" if on_request else ""
        print(f"{kind}: {_amount(of_kind)}: {garbage.KINDS[kind]}{how}")
        for file in of_kind:
            print(f"{file.size:>12} {file.path}")
    files: Sequence[GarbageFile] = going.files
    if delete and files:
        refuse_while_at_work(store)  # before somebody is asked for nothing
        ask_before_deleting(f"Delete {_amount(files)} of {store.url}?", yes=yes)
        files = garbage.remove_garbage(store, going)
    print(f"{_amount(files)} {'removed' if delete else 'can go: --delete'}")


def _amount(files: Sequence["GarbageFile"]) -> str:
    total_mb = sum(file.size for file in files) / 1e6
    return f"{counted(len(files), 'object')}, {total_mb:.1f} MB"


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command(epilog=EPILOG)(gc)
