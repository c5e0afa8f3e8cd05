"""Registers the deployments of prefect.yaml and the rule that ends silent flow runs.

    python -m flows.deploy --pool NAME

A process pool that is not there is made; a Kubernetes pool comes from k8s/ with its template.
"""

import argparse
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from hvkf.errors import HvkfError

ROOT = Path(__file__).parents[1]
SILENT_RULE = "hvkf: end flow runs whose process is gone"
# Three heartbeats: a run whose process and worker were killed is crashed within two minutes.
SILENCE_S = 90.0
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")


def create_silent_rule() -> None:
    """Create the automation that crashes a flow run whose heartbeats stop, or bring it up to date.

    Without it a flow whose process and worker were both killed would stay Running for ever.
    """
    wanted = Automation(
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
    with get_client(sync_client=True) as client:
        for found in client.read_automations_by_name(SILENT_RULE):
            client.delete_automation(found.id)
    wanted.create(_sync=True)  # type: ignore[call-arg]


def create_process_pool(name: str) -> None:
    """Create a pool whose flows run as processes of the worker's machine, if there is none."""
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(
            name=name,
            type=ProcessWorker.type,
            base_job_template=ProcessWorker.get_default_base_job_template(),
        )
        try:
            client.create_work_pool(pool)
        except ObjectAlreadyExists:
            return


def deploy(pool: str) -> None:
    """Register all deployments of prefect.yaml for a pool.

    Raises:
        HvkfError: Prefect refused; its words are in the message.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env={"HVKF_CODE": str(ROOT), "HVKF_TIME_ZONE": "Etc/UTC", **os.environ, "HVKF_POOL": pool},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise HvkfError(f"`prefect deploy --all` failed:\n{(ended.stdout + ended.stderr)[-3000:]}")


def main() -> None:
    """Register everything with the server of PREFECT_API_URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", default=os.environ.get("HVKF_POOL", "local"))
    pool = parser.parse_args().pool
    create_process_pool(pool)
    deploy(pool)
    create_silent_rule()


if __name__ == "__main__":
    main()
