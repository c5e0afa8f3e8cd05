"""The server's rules (automations): silent runs are ended, a failed night is told to a chat."""

import os
from datetime import timedelta

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict
from pydantic import SecretStr

from hvkf.nightly import Outcome

SILENT_RULE = "hvkf: end flow runs whose process is gone"
FAILED_NIGHT_RULE = "hvkf: tell of a night that failed"
WEBHOOK_BLOCK = "hvkf-failed-night"
WEBHOOK_VARIABLE = "HVKF_FAILED_NIGHT_WEBHOOK"
"""Of whoever deploys: the address that is told, as chats take it (JSON with `text`)."""
# Three heartbeats: a run whose process and worker were killed is crashed within two minutes.
SILENCE_S = 90.0
HEARTBEAT = "prefect.flow-run.heartbeat"
# States in which a run has no process, or another soon: events are named by the states' names, and
# nights have names of their own.
ENDS = (
    *("Completed", "Failed", "TimedOut", "Cancelled", "Crashed", "Paused", "Suspended"),
    *("AwaitingRetry", "Scheduled", "Late", "Pending"),
    *(outcome.capitalize() for outcome in Outcome),
)
FAILURES = ("Failed", "Crashed", "TimedOut")
TEXT = (
    '{"text": {{ (flow_run.name ~ ": " ~ flow_run.state.name ~ ": " ~ flow_run.state.message)'
    " | tojson }}}"
)


def create_rules() -> None:
    """Create the rules, or bring them up to date; one that people switched off stays off."""
    with get_client(sync_client=True) as client:
        _replace(client, _silent_rule())
        if address := os.environ.get(WEBHOOK_VARIABLE):
            _replace(client, _failed_night_rule(address))


def _replace(client: SyncPrefectClient, rule: Automation) -> None:
    for found in client.read_automations_by_name(rule.name):
        rule.enabled = found.enabled
        client.delete_automation(found.id)
    rule.create(_sync=True)  # type: ignore[call-arg]


def _silent_rule() -> Automation:
    """Crash a flow run whose heartbeats stop.

    Without it a flow whose process and worker were both killed would stay Running for ever.
    """
    return Automation(
        name=SILENT_RULE,
        description="A flow run that was heard and then was silent has lost its process.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_S),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="The flow's process was not heard for 90 s: it was killed or its machine "
                "is gone. Retry the run: it goes on from what is done.",
            )
        ],
    )


def _failed_night_rule(address: str) -> Automation:
    """Tell a chat of a night that failed; a night's own webhook tells only what a night can."""
    headers = SecretDict({"Content-Type": "application/json"})
    block = Webhook(url=SecretStr(address), headers=headers)
    block_id = block.save(WEBHOOK_BLOCK, overwrite=True, _sync=True)  # type: ignore[call-arg]
    nightly = {"prefect.resource.role": "deployment", "prefect.resource.name": "nightly"}
    return Automation(
        name=FAILED_NIGHT_RULE,
        description=f"Posts to the address of {WEBHOOK_VARIABLE}, which was set at deployment.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{failure}" for failure in FAILURES},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related=ResourceSpecification(nightly),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block_id, payload=TEXT)],
    )
