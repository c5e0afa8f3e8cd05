"""The command line: each stage alone, the whole chain, and what this machine lacks."""

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from enum import StrEnum
from types import ModuleType
from typing import Annotated, Any

import typer

from hvkf import (
    demo_command,
    doctor_command,
    garbage_command,
    ledger,
    list_commands,
    picture_command,
    plan_command,
    render_commands,
    stops,
)
from hvkf.command_options import (
    EPILOG,
    ConfigOption,
    WorkspaceOption,
    read_config,
    refuse_settings,
    split_overrides,
)
from hvkf.config import Config
from hvkf.config_checks import check_before_start
from hvkf.config_file import known_keys
from hvkf.distributed import exit_code_recorded, is_launched, rank
from hvkf.errors import BadInput, ConfigError, CorruptData, HvkfError, Stopped
from hvkf.general_options import options, tell_whole_sentences
from hvkf.job_commands import jobs_app
from hvkf.jobs.manifest import read_numbers
from hvkf.jobs.spec import ERROR_PREFIX
from hvkf.last_resort import explain_unknown
from hvkf.plan_runner import run_parts
from hvkf.processes import (
    follow_parent,
    missing_modules_told,
    spare_loopback_from_proxies,
)
from hvkf.records import Plan, Planned, Summary
from hvkf.reference_commands import add_commands
from hvkf.registry_commands import add_commands as add_registry_commands
from hvkf.settings_command import add_commands as add_settings_command
from hvkf.settings_command import help_of
from hvkf.shown import are, counted
from hvkf.storage import Store, open_existing, open_folder, open_store
from hvkf.uses import at_work, close_plan
from hvkf.verbosity import Verbosity, verbosity

INTERRUPTED_CODE = 130
NO_READER_CODE = 1  # as Typer itself ends where nobody reads the output
END_TIMEOUT_S = 20.0
# Typer has its own copy of click and exports of its exceptions only this one's subclass.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
STAGES = {
    "ingest": "Reads a table of videos and captions; writes a catalog of clips (datasets/).",
    "cache": "Reads the catalog and its videos; writes resized frames as MDS shards (scenes/).",
    "encode": "Reads scenes and the checkpoint's encoders; writes latent shards (latents/).",
    "train": "Reads latents and the transformer; writes checkpoints and the LoRA (runs/).",
    "evaluate": "Reads a run's LoRA and held-out clips; writes metrics and a report (evals/).",
    "render": "Reads a manifest of keyframe pairs and a LoRA; writes videos (renders/).",
}

app = typer.Typer(
    help="Train and run keyframe-control LoRAs for HunyuanVideo: give the first and the last "
    "image, get the video between.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is never cut, and brackets in it are brackets
)


app.callback()(options)


class Step(StrEnum):
    """What to do of a stage."""

    ALL = "all"
    PLAN = "plan"
    RUN = "run"
    COMMIT = "commit"


def stage_module(stage: str) -> ModuleType:
    """Import a stage."""
    return importlib.import_module(f"hvkf.stages.{stage}")


def run_stage(stage: str, config: Config, store: Store) -> Summary:
    """Plan a stage, run its parts in processes of this machine, and commit."""
    module = stage_module(stage)
    with at_work(store, f"hvkf {stage}"):
        plan: Plan = module.plan(config, store)
        if plan.committed is None and plan.parts:
            run_parts(plan, store)
        return _commit(stage, plan, store)


def _commit(stage: str, plan: Plan, store: Store) -> Summary:
    summary: Summary = stage_module(stage).commit(plan, store)
    close_plan(store, plan)
    return summary


def _stage_command(stage: str) -> None:
    def command(
        context: typer.Context,
        step: Annotated[
            Step, typer.Argument(help="Only plan, run given parts of a plan, or commit a plan.")
        ] = Step.ALL,
        config: ConfigOption = None,
        workspace: WorkspaceOption = None,
        plan: Annotated[
            str | None, typer.Option(help="With run and commit: the plan's digest.")
        ] = None,
        parts: Annotated[
            str | None, typer.Option(help="With run: numbers of parts, such as 0-3,7.")
        ] = None,
        index: Annotated[
            int | None,
            typer.Option(min=0, help="With run: only that of the parts, counted from 0."),
        ] = None,
    ) -> None:
        if step in (Step.ALL, Step.PLAN):
            settings = read_config(context, config, workspace)
            store = open_store(settings.workspace)
            if stage == "train" and is_launched():
                _train_as_rank(settings, store)
            elif step == Step.PLAN:
                print(_planned(stage, settings, store))
            else:
                print(run_stage(stage, settings, store).text)
            return
        if workspace is None or plan is None:
            raise ConfigError(f"`hvkf {stage} {step}` needs --workspace and --plan.")
        refuse_settings(context, f"{stage} {step} takes them from the plan")
        if config is not None:
            raise ConfigError(
                f"`hvkf {stage} {step}` takes its settings from the plan: leave out --config."
            )
        store = open_store(workspace)
        found = ledger.read_plan(store, stage, plan)
        if step == Step.COMMIT:
            with at_work(store, f"hvkf {stage} commit"):
                print(_commit(stage, found, store).model_dump_json())
        else:
            with at_work(store, f"a worker of hvkf {stage}", found.digest):
                _run_parts(stage, found, store, parts, index)

    command.__doc__ = STAGES[stage]
    app.command(name=stage, epilog=help_of(stage))(command)


def _planned(stage: str, config: Config, store: Store) -> str:
    """Plan, keep the plan in the workspace, and return it without its parts' work."""
    module = stage_module(stage)
    with at_work(store, f"hvkf {stage} plan"):
        plan: Plan = module.plan(config, store)
        done = module.commit(plan, store) if plan.committed is not None else None
        if done is None:
            ledger.put_plan(store, plan)
    return Planned(
        plan=plan.digest,
        workspace=store.url,
        num_parts=len(plan.parts),
        num_pending=len(ledger.pending_parts(store, plan)),
        note=plan.note,
        done=done,
    ).model_dump_json()


def _run_parts(stage: str, plan: Plan, store: Store, parts: str | None, index: int | None) -> None:
    follow_parent()
    # What a worker logs reaches whoever started it; other libraries speak only of trouble.
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    is_verbose = verbosity() == Verbosity.VERBOSE
    logging.getLogger("hvkf").setLevel(logging.DEBUG if is_verbose else logging.INFO)
    if stage == "train":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # its own handler saves a checkpoint first
    numbers = range(len(plan.parts))
    chosen = list(numbers) if parts is None else read_numbers(parts, numbers)
    if index is not None:
        if index >= len(chosen):
            raise BadInput(f"--index {index} is behind the {counted(len(chosen), 'part')} given.")
        chosen = [chosen[index]]
    with exit_code_recorded(), missing_modules_told(f"`hvkf {stage} run`"):
        stage_module(stage).run(plan, store, [plan.parts[number] for number in chosen])


def _train_as_rank(config: Config, store: Store) -> None:
    """Train in this process, one of several that torchrun or `accelerate launch` started."""
    summary = stage_module("train").run_as_rank(config, store)
    if rank() == 0:
        print(summary.text)


for _stage in STAGES:
    _stage_command(_stage)


@app.command(epilog=EPILOG)
def run(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be created on a cluster.")
    ] = False,
) -> None:
    """Runs the whole chain as one Prefect flow: ingest, cache, encode, train, evaluate, render."""
    settings = read_config(context, config, workspace)
    if dry_run:
        from hvkf.dry_run import dry_run as what_would_be

        for number, text in enumerate(what_would_be(settings)):
            print(f"---\n{text.rstrip()}" if number else text.rstrip(), flush=True)
        return
    check_before_start(settings, open_folder(settings.workspace))
    from flows.local import run_pipeline  # importing Prefect takes seconds

    for summary in run_pipeline(settings):
        print(f"{summary.stage}: {'done before; ' if summary.reused else ''}{summary.text}")
        for name, link in summary.links.items():
            print(f"  {name}: {settings.workspace}/{link}")


@app.command(epilog=EPILOG)
def verify(
    context: typer.Context,
    config: ConfigOption = None,
    workspace: WorkspaceOption = None,
    forget: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Miss no more what was deleted on purpose below this."),
    ] = None,
) -> None:
    """Reads every record anew, hashes what they name, and says what is damaged or gone."""
    from hvkf.journal import forget_deleted
    from hvkf.verify import verify_workspace

    store = open_existing(read_config(context, config, workspace).workspace)
    for path in forget_deleted(store, forget) if forget is not None else ():
        print(f"forgotten: {path}")
    found = verify_workspace(store)
    for fault in found.faults:
        print(fault)
    for line in found.lines():
        print(line)
    if found.faults:
        num_faults = len(found.faults)
        raise CorruptData(
            f"{counted(num_faults, 'stored object')} {are(num_faults)} damaged or gone, of "
            f"{found.num_objects} that are there (see above)."
        )
    end = "is as it was" if found.num_objects == 1 else "are as they were"
    print(f"{counted(found.num_objects, 'stored object')} {end} written")


app.add_typer(jobs_app, name="jobs")
add_commands(app)
garbage_command.add_commands(app)
list_commands.add_commands(app)
picture_command.add_commands(app)
plan_command.add_commands(app)
add_registry_commands(app)
render_commands.add_commands(app)
add_settings_command(app)
doctor_command.add_commands(app)
demo_command.add_commands(app)


tell_whole_sentences(app)


def main() -> None:
    """Run the command line; errors end it with their sentence and exit code."""
    stops.listen()
    spare_loopback_from_proxies()
    code = run_command(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        code = NO_READER_CODE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code:
        _end_in_time(code)
    sys.exit(code)


def _end_in_time(code: int) -> None:
    """See to it that a process that has said its error ends, whatever its threads still wait for.

    What they do does not count: nothing is recorded behind an error.
    """
    timer = threading.Timer(END_TIMEOUT_S, os._exit, [code])
    timer.daemon = True
    timer.start()


def run_command(arguments: Sequence[str]) -> int:
    """Run a command as the shell does; return its exit code.

    An error is one sentence on standard error, whatever it is.
    """
    try:
        return _ended(arguments)
    except BrokenPipeError:  # also while an error is told, or the help of `hvkf` alone
        return NO_READER_CODE


def _ended(arguments: Sequence[str]) -> int:
    try:
        words, overrides = split_overrides(arguments)
        with missing_modules_told(f"`hvkf {' '.join(words[:1])}`"):
            code = app(args=words, obj=overrides, prog_name="hvkf", standalone_mode=False)
    except Stopped as error:
        return _end(error)
    except HvkfError as error:
        return _end(stops.cause_of_end(error))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `hvkf` alone: its message is the help
            print(error.format_message())  # type: ignore[attr-defined]
            return 0
        return _end(BadInput(_explain_usage(error)))
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED_CODE
    except BrokenPipeError:
        raise
    except Exception as error:  # the last resort: it is told, and kept
        return _end(stops.cause_of_end(error))
    if code == INTERRUPTED_CODE:  # Typer may have caught it first
        print(f"{ERROR_PREFIX}Interrupted; the same command goes on from here.", file=sys.stderr)
    return int(code or 0)


def _end(fault: Exception | Stopped) -> int:
    error = fault if isinstance(fault, HvkfError | Stopped) else explain_unknown(fault)
    sentence = " ".join(str(error).split()) or f"{type(error).__name__}, and nothing more is known."
    for line in error.details if isinstance(error, HvkfError) else ():
        print(line, file=sys.stderr)
    print(f"{ERROR_PREFIX}{sentence}", file=sys.stderr)
    return error.exit_code


def _explain_usage(fault: Any) -> str:
    command = fault.ctx.command_path if fault.ctx is not None else "hvkf"
    message = fault.format_message().strip()
    if message and message[-1] not in ".!?":
        message += "."
    sentence = f"{message} `{command} --help` lists what there is."
    if name := getattr(fault, "option_name", "").lstrip("-"):
        settings = [key for key in known_keys() if key.split(".")[-1] == name]
        sentence += "".join(f" The setting is --{key}=VALUE." for key in settings)
    return sentence


if __name__ == "__main__":
    main()
