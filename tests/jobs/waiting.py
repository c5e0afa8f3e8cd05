"""Waiting for a job as a flow does: in a thread of the test, or in a process that may be killed.

The pods' command is a shell script, set by the deployment's own patch of the pod template.
"""

import sys
import threading
from pathlib import Path
from typing import Any

from hvkf.jobs.cluster import run_plan
from hvkf.jobs.spec import Listener, Progress
from hvkf.records import Part, Plan
from hvkf.settings.jobs import ClusterJobs, StageJobs
from hvkf.storage import FolderStore

LIMIT_S = 40.0
# What a part's pod does; the plan's outputs lie where OUT says.
DONE = 'mkdir -p "$OUT/out"; echo done > "$OUT/out/$JOB_COMPLETION_INDEX"'
CLUSTER = {"image": "image:1", "api_outage_s": 20.0, "lease_s": 900.0}


def plan_of(
    store: FolderStore,
    script: str,
    *,
    stage: str = "cache",
    num_parts: int = 1,
    cluster: dict[str, Any] | None = None,
    **jobs: Any,
) -> Plan:
    """Plan parts whose pods run a script."""
    command = {"op": "replace", "path": "/spec/containers/0/command", "value": ["sh", "-c", script]}
    settings = StageJobs.model_validate(
        {
            "executor": "kubernetes",
            "workers": num_parts,
            "pod_patch": [command],
            "env": {"OUT": str(store.root)},
            "grace_s": 10,
            **jobs,
        }
    )
    shared = ClusterJobs.model_validate({**CLUSTER, **(cluster or {})})
    sections = {stage: settings.model_dump(mode="json"), "cluster": shared.model_dump(mode="json")}
    parts = tuple(Part(index=n, outputs=(f"out/{n}",), work={}) for n in range(num_parts))
    return Plan(stage=stage, digest="d", config={"jobs": sections}, inputs={}, parts=parts)


class Interrupted(BaseException):
    """What a cancelled flow's code meets, as Prefect's TerminationSignal is none of Exception."""


class Waiter:
    """A run of a plan in a thread."""

    def __init__(
        self,
        plan: Plan,
        store: FolderStore,
        owner: str = "me",
        details: list[str] | None = None,
        *,
        moves: bool = False,
    ) -> None:
        self.lines: list[str] = []
        self.progress: list[tuple[int, Progress]] = []
        self.fault: BaseException | None = None
        self._is_cancelled = threading.Event()
        listener = Listener(
            lambda index, event: self.progress.append((index, event)),
            self._hear,
            ([] if details is None else details).append,
        )
        self._moves = moves
        self._thread = threading.Thread(
            target=self._run, args=(plan, store, listener, owner), daemon=True
        )
        self._thread.start()

    def _run(self, plan: Plan, store: FolderStore, listener: Listener, owner: str) -> None:
        try:
            run_plan(plan, store, listener, owner, lambda: self._moves)
        except BaseException as fault:
            self.fault = fault

    def _hear(self, line: str) -> None:
        self.lines.append(line)
        if self._is_cancelled.is_set() and "deleted" not in line:
            raise Interrupted

    def cancel(self) -> None:
        """Interrupt the wait when its next line comes; the script must go on speaking."""
        self._is_cancelled.set()

    def end(self) -> "Waiter":
        """Wait for the run's end, whatever it is."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), self.lines[-20:]
        return self

    def result(self) -> "Waiter":
        """Wait for the run's end; raise the fault it ended by."""
        self.end()
        if self.fault is not None:
            raise self.fault
        return self

    def said(self, words: str) -> bool:
        """Whether a line has these words."""
        return any(words in line for line in self.lines)


def main() -> None:
    """Run a plan from a file, as a flow's process does."""
    plan_file, folder, owner = sys.argv[1:]
    plan = Plan.model_validate_json(Path(plan_file).read_text())
    listener = Listener(lambda *_: None, lambda line: print(line, flush=True))
    run_plan(plan, FolderStore(Path(folder)), listener, owner)


if __name__ == "__main__":
    main()
