"""The nightly retraining as a flow: its stages run below it, its verdict is told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed

from flows.endings import told
from flows.form_errors import read_form
from flows.forms import NightlyForm
from flows.labels import label_this_run
from flows.links import link_of
from flows.pipeline import Ran, lines_of, run_below
from flows.server import wait_for_server
from flows.stage import run_hvkf
from hvkf.config import Config
from hvkf.config_checks import check_before_start
from hvkf.errors import HvkfError, WorkStopped
from hvkf.loras import REGISTRY_SCHEME
from hvkf.nightly import Decision, Night, NightRecord, NightRefused, Outcome, OutOfBudget
from hvkf.records import Summary
from hvkf.registry import CARD_NAME, SAMPLES_NAME, find_registered, lora_folder
from hvkf.storage import open_folder, open_store
from hvkf.webhook import post_verdict

RENEWALS_PER_LEASE = 4
SHOWN = {
    "run_id": "training run",
    "began_from": "began from",
    "gpu_hours": "GPU hours",
    "started_at": "began",
    "ended_at": "ended",
}
"""What the verdict's table shows, and how it is called there."""
CARD_FILES = {"model card": CARD_NAME, "samples": SAMPLES_NAME}


@flow(name="nightly", persist_result=False, validate_parameters=False)
def nightly(request: NightlyForm) -> State[Any]:
    """Retrain on what is new, evaluate, and put the new LoRA into use if it is found better.

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return told("nightly", lambda: _night(read_form(NightlyForm, request).to_config()))


def _night(config: Config) -> State[Any]:
    store = open_store(config.workspace)
    label_this_run("nightly", config)
    try:
        night = Night(config, store, _owner())
    except NightRefused as error:
        return Cancelled(message=str(error))
    stages = _Stages()
    try:
        with _kept_alive(night, config):
            record = night.run(stages)
    finally:
        _tell(night.record, config, stages.ran)
    assert record.outcome is not None
    return Completed(name=record.outcome.capitalize(), message=record.reason)


def _owner() -> str:
    """Name this flow run: its retry takes its own night up again."""
    return f"flow-run {flow_run.id}"


class _Stages:
    """What a night has others do: the stages' flows, the registry and the gate.

    What is in use under the night's own name is improved, whatever `gate.registry` says.
    """

    def __init__(self) -> None:
        self.ran: list[Ran] = []

    def check(self, config: Config) -> None:
        # What a night does not use may be gone: it renders no manifest, and has a start of its own.
        changed: dict[str, Any] = {"render": config.render.model_copy(update={"manifest": None})}
        if config.nightly.begin_from == "scratch" or self.in_use(config) is not None:
            changed["network"] = config.network.model_copy(update={"lora_weights": None})
        check_before_start(config.model_copy(update=changed), open_folder(config.workspace))

    def run(self, stage: str, config: Config, timeout_s: float | None) -> Summary:
        try:
            return run_below(stage, config, timeout_s, self.ran.append)
        except TimeoutError as fault:
            if timeout_s is None:
                raise
            raise OutOfBudget(f"{stage} was stopped after {timeout_s:.0f} s") from fault

    def in_use(self, config: Config) -> str | None:
        found = find_registered(open_store(config.workspace), config.nightly.name)
        if found is None:
            return None
        return f"{REGISTRY_SCHEME}{found.name}@{found.in_use.version}"

    def judge(self, config: Config, evaluation: Summary) -> Decision:
        gate = config.gate.model_copy(update={"registry": config.nightly.name})
        settings = config.model_copy(update={"gate": gate}).model_dump_json()
        arguments = ["gate", "--config", "-", "--evaluation", evaluation.result]
        gated = json.loads(run_hvkf(arguments, settings))
        verdict = gated["verdict"]
        reason = f"{verdict['outcome']}: {'; '.join(verdict['reasons'])} ({gated['decision']})"
        return Decision(promoted=gated["is_promoted"], reason=reason)


@contextmanager
def _kept_alive(night: Night, config: Config) -> Iterator[None]:
    """Renew the night's lease from a thread."""
    logger, ended = get_run_logger(), threading.Event()
    pause_s = 60 * config.nightly.lease_minutes / RENEWALS_PER_LEASE

    def renew() -> None:
        while not ended.wait(pause_s):
            try:
                night.renew()
            except WorkStopped as fault:  # the night itself stops at its next step
                logger.error(str(fault))
                return
            except (HvkfError, OSError) as fault:
                logger.warning(f"The night's lease could not be renewed: {fault}")

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def verdict_of(record: NightRecord) -> dict[str, Any]:
    """Say how a night ended, for people and for webhooks (`text` is what chats show)."""
    sentence = f"Night {record.number} of {record.name}: {record.outcome}: {record.reason}"
    return {
        "text": sentence,
        "name": record.name,
        "number": record.number,
        "outcome": record.outcome,
        "reason": record.reason,
        "run_id": record.run_id,
        "began_from": record.began_from,
        "gpu_hours": round(record.gpu_seconds / 3600, 2),
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "evaluation": record.evaluation,
    }


def _model_card(record: NightRecord, workspace: str) -> list[str]:
    """Link the card of the LoRA that a night put into use, and its samples."""
    if record.outcome != Outcome.PROMOTED:
        return []
    registered = find_registered(open_store(workspace), record.name)
    if registered is None or registered.in_use.run_id != record.run_id:
        return []  # another came into use meanwhile
    version = registered.in_use
    kept = {file.name for file in version.files}
    found = [(text, name) for text, name in CARD_FILES.items() if name in kept]
    folder = lora_folder(version.lora_sha256)
    return [*(f"- {link_of(text, workspace, f'{folder}/{name}')}" for text, name in found), ""]


def _tell(record: NightRecord, config: Config, ran: list[Ran]) -> None:
    """Send the verdict as an event, an artifact and, where one is set, to a webhook."""
    logger = get_run_logger()
    values = verdict_of(record)
    logger.info(values["text"])
    emit_event(
        event=f"hvkf.nightly.{record.outcome}",
        resource={
            "prefect.resource.id": f"hvkf.nightly.{record.name}",
            "prefect.resource.name": record.name,
        },
        payload=values,
    )
    told = config.nightly
    fault = post_verdict(told.webhook_variable, values, told.webhook_any_address)
    if fault is not None:
        logger.warning(fault)
    wait_for_server()
    title = f"Night {record.number} of {record.name}: {record.outcome}"
    rows = [f"| {name} | {values[key]} |" for key, name in SHOWN.items() if values[key]]
    table = ["| | |", "|-|-|", *rows, ""]
    lines = [f"# {title}", "", record.reason, "", *_model_card(record, config.workspace), *table]
    create_markdown_artifact(
        key="nightly-verdict",
        markdown="\n".join([*lines, *lines_of(ran, config.workspace)]),
        description=title,
    )
