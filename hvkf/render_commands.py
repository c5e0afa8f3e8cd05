"""Commands of bulk rendering: submitting a manifest with its quote, and fetching its videos."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hvkf.command_options import EPILOG, ConfigOption, WorkspaceOption, read_config
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.plan_runner import run_parts
from hvkf.records import digest
from hvkf.shown import counted
from hvkf.storage import Store, open_existing, open_store
from hvkf.uses import at_work, close_plan

SUBMIT_EPILOG = (
    "A manifest is a CSV, TSV, JSON, JSONL or Parquet file whose rows have an id, a first_frame, a "
    "last_frame and a prompt. Look first: `hvkf submit pairs.csv --config my.yaml --dry-run`. Then "
    "render: `hvkf submit pairs.csv --config my.yaml`; interrupted, the same command goes on. "
    "docs/rendering.md says more. " + EPILOG
)
FETCH_EPILOG = (
    "Such as `hvkf fetch 3f2a videos/ --workspace s3://bucket/prefix`. Files that are there "
    "already are left; the same command goes on where it was stopped."
)


def submit(
    context: typer.Context,
    manifest: Annotated[
        str, typer.Argument(help="Table of pairs: a file or s3:// address; sets render.manifest.")
    ],
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check every row, print faults and quote, and stop."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Render without asking; scripts need it.")
    ] = False,
    only_failed: Annotated[
        bool,
        typer.Option(
            "--only-failed",
            help="Try the rows again that failed or were set aside; what was rendered stays.",
        ),
    ] = False,
) -> None:
    """Renders a manifest of keyframe pairs: checks all rows, quotes the cost, asks, renders."""
    from hvkf.stages import render, render_again  # pyarrow takes a second
    from hvkf.stages.render_records import manifest_folder

    settings = _with_manifest(read_config(context, config, workspace), manifest)
    store = open_store(settings.workspace)
    checked = render.check_rows(settings, store)
    failed = render_again.failed_rows(store, checked.planned) if only_failed else {}
    for failure in failed.values():
        print(f"{failure.source}: {failure.message} [{failure.code}]; it is tried again")
    if failed:
        checked = render.check_rows(settings, store, again=failed)
    refusal = render.refusal_of(settings, checked, store)
    for line in checked.quote.lines(with_failures=refusal is None):
        print(line)
    if refusal is not None:
        raise refusal
    if dry_run:
        return
    if checked.quote.groups:
        _ask(yes)
    root = manifest_folder(digest(render.plan_inputs(settings, checked)))
    with at_work(store, "hvkf submit"):
        if failed:
            render_again.forget_failures(store, root, failed)
        quoted = render.plan_checked(settings, store, checked)
        if quoted.plan.committed is None:
            store.put(f"{root}/quote.json", quoted.quote.to_json())
            run_parts(quoted.plan, store)
        summary = render.commit(quoted.plan, store)
        close_plan(store, quoted.plan)
    print(summary.text)
    for name, link in summary.links.items():
        print(f"  {name}: {store.url}/{link}")
    print(f"  fetch: {_fetch_command(quoted.plan.digest, store)}")


def _with_manifest(settings: Config, manifest: str) -> Config:
    """Name the manifest by its full path: workers may run in another folder."""
    full = manifest if "://" in manifest else str(Path(manifest).expanduser().absolute())
    render = settings.render.model_copy(update={"manifest": full})
    return settings.model_copy(update={"render": render})


def _ask(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(
            "Nobody is there to be asked whether to render this: add --yes, or --dry-run to only "
            "look."
        )
    typer.confirm("Render these rows?", abort=True)


def _fetch_command(name: str, store: Store) -> str:
    return f"hvkf fetch {name} FOLDER --workspace {store.url}"


def fetch(
    context: typer.Context,
    render: Annotated[
        str, typer.Argument(help="Name that `hvkf submit` said at its end, or how it begins.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where to put <id>.mp4 and <id>.json.")],
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Downloads a render's videos and settings, named by their rows' ids, and its results."""
    from hvkf.stages.render_fetch import fetch as copy  # pyarrow takes a second

    store = open_existing(read_config(context, config, workspace).workspace)
    fetched = copy(store, render, folder)
    print(
        f"{counted(fetched.num_copied, 'video')} copied to {folder}, {fetched.num_there} were "
        f"there; {counted(fetched.num_failed, 'row')} without one (see results.parquet)"
    )


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command(epilog=SUBMIT_EPILOG)(submit)
    app.command(epilog=FETCH_EPILOG)(fetch)
