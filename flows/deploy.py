"""Registers pool, deployments, the nightly schedule and the rule that ends silent flow runs.

    python -m flows.deploy --pool NAME [--template FILE]

Every start of `make serve` and of the cluster's worker does this. What people set on the server
stays as they set it: schedules, pauses, limits of the pool, whether the rule is on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.rules import create_rules
from hvkf.errors import HvkfError
from hvkf.processes import spare_loopback_from_proxies

ROOT = Path(__file__).parents[1]
PLACES = ("HVKF_FLOW_IMAGE", "HVKF_NAMESPACE")
"""Environment variables whose names stand in a pool's template where their values belong."""
NIGHTLY = "nightly/nightly"
NIGHT_BEGINS = "0 2 * * *"


def create_process_pool(name: str) -> None:
    """Create a pool whose flows run as processes of the worker's machine, if there is none."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        _create_pool(client, name, ProcessWorker.type, template)


def filled_template(text: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Read a pool's template, with values in the place of their names."""
    for name in PLACES:
        text = text.replace(name, values[name])
    template: dict[str, Any] = json.loads(text)
    return template


def register_kubernetes_pool(name: str, template: dict[str, Any]) -> None:
    """Create a pool whose flows run as pods, or bring its base job template up to date."""
    with get_client(sync_client=True) as client:
        if not _create_pool(client, name, "kubernetes", template):
            # Nothing else is sent: pauses and limits are people's.
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def _create_pool(client: SyncPrefectClient, name: str, kind: str, template: dict[str, Any]) -> bool:
    """Create a pool; False where there is one of that name."""
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))
    except ObjectAlreadyExists:
        return False
    return True


def add_nightly_schedule() -> None:
    """Give the nightly deployment its schedule, switched off, where it has none."""
    schedule = CronSchedule(cron=NIGHT_BEGINS, timezone=os.environ.get("HVKF_TIME_ZONE", "Etc/UTC"))
    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name(NIGHTLY)
        if not nightly.schedules:
            wanted = DeploymentScheduleCreate(schedule=schedule, active=False)
            client.create_deployment_schedules(nightly.id, [wanted])


def deploy(pool: str) -> None:
    """Register all deployments of prefect.yaml for a pool.

    Raises:
        HvkfError: Prefect refused; its words are in the message.
    """
    with tempfile.TemporaryDirectory(prefix="hvkf-deploy-") as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(_deployments_as_they_are()))
        _prefect_deploy(file, pool)


def _deployments_as_they_are() -> dict[str, Any]:
    """Read prefect.yaml, and keep paused what people have paused: Prefect would let it run."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    with get_client(sync_client=True) as client:
        for entry in content["deployments"]:
            flow = entry["entrypoint"].rpartition(":")[2]
            try:
                found = client.read_deployment_by_name(f"{flow}/{entry['name']}")
            except ObjectNotFound:
                continue
            entry["paused"] = found.paused
    return content


def _prefect_deploy(file: Path, pool: str) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"),
            *("--prefect-file", str(file)),
        ],
        cwd=ROOT,
        env={"HVKF_CODE": str(ROOT), **os.environ, "HVKF_POOL": pool},
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
    parser.add_argument(
        "--template", type=Path, help="Base job template of a Kubernetes pool; left out: processes"
    )
    given = parser.parse_args()
    spare_loopback_from_proxies()
    if given.template is None:
        create_process_pool(given.pool)
    else:
        template = filled_template(given.template.read_text(), os.environ)
        register_kubernetes_pool(given.pool, template)
    deploy(given.pool)
    add_nightly_schedule()
    create_rules()


if __name__ == "__main__":
    main()
