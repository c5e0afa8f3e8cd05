"""Commands of the registry: what is in use, since when and why; promoting and rolling back."""

from pathlib import Path
from typing import Annotated

import typer

from hvkf.command_options import EPILOG, ConfigOption, WorkspaceOption, read_config
from hvkf.errors import BadInput
from hvkf.ledger import on_conflict_again
from hvkf.loras import Lora, resolve_lora
from hvkf.records import RunRecord
from hvkf.registry import (
    OutOfDate,
    Registered,
    Version,
    differences,
    find_registered,
    lora_folder,
    names,
    pick_version,
    read_registered,
    rollback,
)
from hvkf.shown import counted
from hvkf.stages.model_card import flat
from hvkf.stages.promotion import RUN_NAME, candidate_of, person, put_into_use
from hvkf.storage import Store, open_existing, open_store
from hvkf.stored import read_record
from hvkf.training.lineage import read_lineage, seen_held_out

registry_app = typer.Typer(
    help="Which LoRA is in use under a name: list, show, promote, rollback, diff.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NameArgument = Annotated[str, typer.Argument(help="The name that LoRAs are registered under.")]
ByOption = Annotated[
    str | None, typer.Option(help="Who decides this; left out, this user and host.")
]
NoteOption = Annotated[str, typer.Option(help="Why, for those who read the history.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]


def _store(context: typer.Context, config: str | None, workspace: str | None) -> Store:
    return open_store(read_config(context, config, workspace).workspace)


def _existing(context: typer.Context, config: str | None, workspace: str | None) -> Store:
    return open_existing(read_config(context, config, workspace).workspace)


def _line(version: Version, *, in_use: bool) -> str:
    what = f"back to {version.restores}" if version.restores else version.origin
    mark = "*" if in_use else " "
    return (
        f"{mark} {version.version:>3}  {version.decided_at}  {version.lora_sha256[:12]}  {what}  "
        f"by {version.decided_by}" + (f": {version.note}" if version.note else "")
    )


@registry_app.command(name="list", epilog=EPILOG)
def list_names(
    context: typer.Context, config: ConfigOption = None, workspace: WorkspaceOption = None
) -> None:
    """Lists every name with the version in use."""
    store = _existing(context, config, workspace)
    found = names(store)
    if not found:
        print(f"nothing is registered in {store.url}")
    for name in found:
        print(f"{name} {_line(read_registered(store, name).in_use, in_use=True)}")


@registry_app.command(epilog=EPILOG)
def show(
    context: typer.Context,
    name: NameArgument,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows a name's history, newest first, and all that is known of the version in use."""
    registered = read_registered(_existing(context, config, workspace), name)
    if as_json:
        print(registered.model_dump_json())
        return
    for version in reversed(registered.history):
        print(_line(version, in_use=version == registered.in_use))
    for key, value in _facts(registered.in_use).items():
        print(f"      {key}: {value}")


@registry_app.command(epilog=EPILOG)
def promote(
    context: typer.Context,
    name: NameArgument,
    lora: Annotated[
        str, typer.Option(help="run:RUN_ID[/step-N], registry:NAME@N, workspace:PATH or a file.")
    ],
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    by: ByOption = None,
    note: NoteOption = "",
) -> None:
    """Puts a LoRA into use by a person's decision; `hvkf gate` decides by an evaluation."""
    store = _store(context, config, workspace)
    found = resolve_lora(lora, store)
    _refuse_contaminated(store, found)
    candidate = candidate_of(store, found, decided_by=by or person(), note=note)

    def put() -> Version:
        before = find_registered(store, name)
        over = 0 if before is None else before.in_use.version
        return put_into_use(store, name, found, candidate, over=over)

    # A person's decision does not rest on what was in use: of two at once, both stand, in order.
    version = on_conflict_again(put, f"{name!r}", OutOfDate)
    print(f"{name} uses version {version.version}, {version.origin}")


def _refuse_contaminated(store: Store, lora: Lora) -> None:
    """Refuse a LoRA that was trained on held-out videos: no evaluation of it means anything."""
    trained = None if lora.run_id is None else read_lineage(store, lora.run_id)
    if trained is None or trained.unknown:
        print(
            "What this LoRA was trained on is not known in full: it may have seen held-out videos."
        )
    if trained is not None and (seen := seen_held_out(store, trained)):
        raise BadInput(
            f"{lora.name}, or a LoRA that it began from, was trained on "
            f"{counted(len(seen), 'held-out video')} ({', '.join(seen[:3])}): train from "
            "scratch on a data set that holds them out."
        )


@registry_app.command(name="rollback", epilog=EPILOG)
def roll_back(
    context: typer.Context,
    name: NameArgument,
    to: Annotated[
        int | None, typer.Option(help="Version to go back to; left out, the one before.")
    ] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    by: ByOption = None,
    note: NoteOption = "",
) -> None:
    """Puts an earlier version's LoRA into use again; the history keeps both."""
    store = _existing(context, config, workspace)
    version = rollback(store, name, to=to, decided_by=by or person(), note=note)
    print(f"{name} uses version {version.version}, which is version {version.restores} again")


@registry_app.command(epilog=EPILOG)
def diff(
    context: typer.Context,
    name: NameArgument,
    before: Annotated[int | None, typer.Argument(help="A version; left out, the last one.")] = None,
    after: Annotated[int | None, typer.Argument(help="Another; left out, that in use.")] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Shows what differs between two versions: data, code, figures, settings of training."""
    store = _existing(context, config, workspace)
    registered = read_registered(store, name)
    newer = pick_version(registered, after)
    older = pick_version(registered, before or _before(registered, newer))
    print(f"{name} {older.version} -> {newer.version}")
    changed = differences(
        _facts(older) | _settings(store, older), _facts(newer) | _settings(store, newer)
    )
    for key, (was, is_now) in changed.items():
        print(f"  {key}: {_shown(was)} -> {_shown(is_now)}")
    if not changed:
        print("  nothing differs")


def _before(registered: Registered, version: Version) -> int:
    if version.version == 1:
        raise BadInput(f"{registered.name!r} has no version before 1 to compare with.")
    return version.version - 1


def _facts(version: Version) -> dict[str, object]:
    """List what is known of a version, flat; what is not known is left out."""
    facts = version.model_dump(exclude={"version", "figures", "files"}, exclude_none=True)
    return {**facts, **{f"figures.{key}": value for key, value in version.figures.items()}}


def _settings(store: Store, version: Version) -> dict[str, object]:
    """Read the settings that a version's LoRA was trained with, where a run made it."""
    try:
        run = read_record(store, f"{lora_folder(version.lora_sha256)}/{RUN_NAME}", RunRecord)
    except FileNotFoundError:
        return {}
    return {f"training.{key}": value for key, value in flat(run.settings).items()}


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def gate(
    context: typer.Context,
    evaluation: Annotated[
        str, typer.Option(help="The evaluation's folder or metrics.json in the workspace.")
    ],
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Judges an evaluation by the rule of `gate:`, promotes its LoRA or not; prints JSON."""
    settings = read_config(context, config, workspace)
    from hvkf.stages.evaluate_gate import gate as decide  # SciPy takes a second

    print(decide(settings.gate, open_existing(settings.workspace), evaluation).model_dump_json())


def export_vbench(
    context: typer.Context,
    evaluation: Annotated[
        str, typer.Argument(help="The evaluation's folder or metrics.json in the workspace.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where to put videos/ and images/.")],
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Writes an evaluation's videos for VBench-I2V, and says how to run it on them."""
    store = _existing(context, config, workspace)
    from hvkf.stages.evaluate_vbench import export_for_vbench, how_to_run  # Pillow takes a moment

    num_pairs = export_for_vbench(store, evaluation, folder)
    print(f"{counted(num_pairs, 'video')} and their first keyframes are in {folder}.")
    print(how_to_run(folder))


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.add_typer(registry_app, name="registry")
    app.command(epilog=EPILOG)(gate)
    app.command(epilog=EPILOG)(export_vbench)
