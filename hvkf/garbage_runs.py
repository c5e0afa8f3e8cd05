"""Folders of runs that came to nothing: abandoned, or refused by the gate. They go on request."""

from collections.abc import Iterator
from typing import NamedTuple

from hvkf.nightly import FOLDER as NIGHTS
from hvkf.nightly import nights
from hvkf.records import Plan
from hvkf.registry import names, read_registered
from hvkf.stages.evaluate_gate import DECISIONS, Decision
from hvkf.storage import Store
from hvkf.stored import read_record
from hvkf.training.cost import timings_folder
from hvkf.training.lineage import lineage_path
from hvkf.training.runs import COMMIT_NAME, result_path, run_folder

ABANDONED, REFUSED = "abandoned-run", "refused-run"


class RunFolder(NamedTuple):
    """A run that came to nothing, why, and its files in the order in which they are deleted."""

    run_id: str
    kind: str
    paths: tuple[str, ...]


def useless_runs(store: Store, plans: list[Plan], until_s: float) -> Iterator[RunFolder]:
    """Yield the runs that nothing uses and nobody has touched since `until_s`.

    Used are runs that a registered name's history names, those of nights that have not ended, and
    those that a plan trains, evaluates, renders with or begins from. The list of videos that a run
    was trained on stays: LoRAs may have begun from it.
    """
    by_run: dict[str, list[str]] = {}
    for path in store.list("runs"):
        _, run_id, *rest = path.split("/")
        if rest:
            by_run.setdefault(run_id, []).append(path)
    used, refused = _used_runs(store, plans), _refused_runs(store)
    for run_id, paths in by_run.items():
        has_result = result_path(run_id) in paths
        if run_id in used or (has_result and run_id not in refused):
            continue
        kept = lineage_path(run_id)
        gone = sorted((path for path in paths if path != kept), key=_Order(run_id))
        if gone:
            gone[-1:-1] = store.list(timings_folder(run_id))  # run.json stays the last
        if gone and max(store.stat(path).modified_s for path in gone) <= until_s:
            yield RunFolder(run_id, REFUSED if has_result else ABANDONED, tuple(gone))


class _Order:
    """Sorts a run's files: what says that something is complete goes first, run.json last."""

    def __init__(self, run_id: str) -> None:
        self._result = result_path(run_id)
        self._run = f"{run_folder(run_id)}/run.json"

    def __call__(self, path: str) -> tuple[int, str]:
        if path == self._result:
            return 0, path
        if path.endswith(f"/{COMMIT_NAME}"):
            return 1, path
        return (3 if path == self._run else 2), path


def _used_runs(store: Store, plans: list[Plan]) -> set[str]:
    used = {v.run_id for name in names(store) for v in read_registered(store, name).history}
    for name in {path.split("/")[1] for path in store.list(NIGHTS) if path.count("/") == 2}:
        used |= {night.run_id for night in nights(store, name) if night.outcome is None}
    for plan in plans:
        inputs = plan.inputs
        if plan.stage == "train":
            used |= {inputs["run"]["run_id"], inputs["lora"]["run_id"]}
        elif plan.stage == "evaluate":
            used.add(inputs["evaluation"]["lora"]["run_id"])
        elif plan.stage == "render":
            used |= {lora["run_id"] for lora in inputs["loras"].values()}
    return {run_id for run_id in used if run_id is not None}


def _refused_runs(store: Store) -> set[str]:
    """List the runs whose LoRAs the gate has judged, and never promoted."""
    refused: set[str] = set()
    promoted: set[str] = set()
    for path in store.list(DECISIONS):
        if not path.endswith(".json") or path.rpartition("/")[2].startswith("."):
            continue
        decision = read_record(store, path, Decision)
        run_id = decision.evaluation.split("/")[1]
        (promoted if decision.verdict.outcome == "promote" else refused).add(run_id)
    return refused - promoted
