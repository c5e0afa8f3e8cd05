"""Turns: small jobs one after the other, whose order is priority, then time had for the weight."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hvkf.errors import BadInput, TryAgain
from hvkf.jobs import local, turns
from hvkf.jobs.local import run_plan
from hvkf.jobs.manifest import PRIORITY_LABEL, build_manifest
from hvkf.jobs.spec import JobSpec, Listener, job_for
from hvkf.jobs.turns import LocalOrder, Turns
from hvkf.records import Part, Plan
from hvkf.settings.jobs import ClusterJobs, StageJobs
from hvkf.storage import FolderStore


def plan_of(stage: str, num_parts: int, workers: int = 2, **settings: object) -> Plan:
    parts = tuple(
        Part(index=index, outputs=(f"out/{index}",), work={}) for index in range(num_parts)
    )
    jobs = StageJobs(workers=workers, max_attempts=2)
    config = {"jobs": {stage: jobs.model_dump()}, stage: settings}
    return Plan(stage=stage, digest="d", config=config, inputs={}, parts=parts)


def test_rendering_goes_in_jobs_of_a_part_for_each_worker_and_other_stages_do_not() -> None:
    plan = plan_of("render", 5)
    assert [part.index for part in Turns(plan).next(plan.parts)] == [0, 1]
    assert [part.index for part in Turns(plan).next(plan.parts[2:])] == [2, 3]
    encode = plan_of("encode", 5)
    assert [part.index for part in Turns(encode).next(encode.parts)] == [0, 1, 2, 3, 4]


def test_a_part_that_is_given_up_does_not_hold_up_the_others() -> None:
    plan = plan_of("render", 5)
    some = Turns(plan)
    some.give_up(plan.parts[:2], plan.parts[1:], BadInput("row 3 is no picture"))
    assert [part.index for part in some.next(plan.parts[1:])] == [2, 3]
    with pytest.raises(BadInput, match="row 3"):
        some.finish()


def test_turn_after_turn_in_vain_ends_the_render() -> None:
    plan = plan_of("render", 9)
    some = Turns(plan)
    for number in range(turns.MAX_VAIN_TURNS - 1):
        some.give_up(plan.parts[2 * number : 2 * number + 2], plan.parts, BadInput("the disk"))
    with pytest.raises(BadInput, match="the disk"):
        some.give_up(plan.parts[6:8], plan.parts, BadInput("the disk"))


class Jobs:
    """Stands for the workers of the local executor: notes each job, and does its parts or fails."""

    def __init__(self, store: FolderStore, seconds: float = 0.0) -> None:
        self.store, self.seconds = store, seconds
        self.done: list[tuple[str, tuple[int, ...]]] = []
        self.faults: dict[int, list[Exception]] = {}

    def __call__(self, job: JobSpec, store: FolderStore, listener: Listener) -> object:
        assert job.parts is not None
        time.sleep(self.seconds)
        self.done.append((job.plan, job.parts))
        fault = None
        for part in job.parts:
            if self.faults.get(part):
                fault = self.faults[part].pop(0)
            else:
                self.store.put(f"out/{job.plan}/{part}", b"")
        return fault


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Jobs(FolderStore(tmp_path / "workspace"))
    monkeypatch.setattr(local, "_run_job", found)
    return found


def named(name: str, num_parts: int, workers: int = 1, **settings: object) -> Plan:
    plan = plan_of("render", num_parts, workers, **settings)
    parts = tuple(
        part.model_copy(update={"outputs": (f"out/{name}/{part.index}",)}) for part in plan.parts
    )
    return plan.model_copy(update={"digest": name, "parts": parts})


QUIET = Listener(lambda index, event: None, lambda line: None)


def test_a_bad_part_and_one_that_keeps_failing_are_said_when_the_others_are_done(
    jobs: Jobs,
) -> None:
    jobs.faults = {0: [BadInput("an image changed")], 3: [TryAgain("killed"), TryAgain("killed")]}
    with pytest.raises(BadInput, match="an image changed"):
        run_plan(named("one", 5, workers=2), jobs.store, QUIET)
    assert [parts for _, parts in jobs.done] == [(0, 1), (2, 3), (3, 4)]
    assert sorted(jobs.store.list("out")) == ["out/one/1", "out/one/2", "out/one/4"]


def run_together(jobs: Jobs, first: Plan, *later: Plan) -> list[str]:
    """Run plans in threads, the later ones from when the first has begun; return whose turns."""
    jobs.seconds = 0.05
    threads = [
        threading.Thread(target=run_plan, args=(plan, jobs.store, QUIET))
        for plan in (first, *later)
    ]
    threads[0].start()
    deadline_s = time.monotonic() + 30
    while not jobs.done:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return [name for name, _ in jobs.done]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "POLL_S", 0.005)


def test_an_urgent_render_waits_for_one_part_of_a_large_one_at_the_most(jobs: Jobs) -> None:
    found = run_together(jobs, named("large", 30), named("urgent", 3, priority="urgent"))
    begun = found.index("urgent")
    assert found[begun : begun + 3] == ["urgent"] * 3
    # The part that ran when it came, one more that may have begun while its thread started.
    assert begun <= 3
    assert found.count("large") == 30


def test_equal_renders_alternate_and_a_weight_of_three_gets_three_turns_of_four(
    jobs: Jobs,
) -> None:
    found = run_together(jobs, named("one", 12), named("other", 6))
    shared = found[found.index("other") : len(found) - found[::-1].index("other")]
    assert abs(shared.count("one") - shared.count("other")) <= 2
    jobs.done.clear()
    found = run_together(jobs, named("heavy", 24, weight=3.0), named("light", 4))
    shared = found[found.index("light") : len(found) - found[::-1].index("light")]
    assert 6 <= shared.count("heavy") <= 12


def test_a_render_that_was_killed_in_its_turn_does_not_hold_it(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hvkf.jobs.turns import LocalOrder\n"
        "with LocalOrder(Path(sys.argv[1])) as order, order.turn(1, lambda: None):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "order.json"
    ended = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert json.loads(file.read_text())["running"] is not None
    with LocalOrder(file) as order, order.turn(1, lambda: pytest.fail("it waits")):
        assert len(json.loads(file.read_text())["askers"]) == 1
    assert json.loads(file.read_text())["askers"] == []


def test_a_wait_that_is_interrupted_leaves_the_order(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    file = tmp_path / "order.json"
    with LocalOrder(file) as one, one.turn(1, lambda: None):
        with pytest.raises(KeyboardInterrupt), LocalOrder(file) as two, two.turn(1, interrupt):
            pytest.fail("it is the other's turn")
        assert len(json.loads(file.read_text())["askers"]) == 1
    assert os.path.getsize(file) > 0


def test_a_priority_is_kueues_priority_class_where_there_is_a_queue() -> None:
    plan = named("one", 3, priority="urgent")
    job = job_for(plan, "s3://bucket/x", list(plan.parts), attempt=1)
    on_cluster = {"image": "i", "executor": "kubernetes"}
    for queue, found in ((None, None), ("gpu", "hvkf-urgent")):
        settings = job.jobs.model_copy(update={**on_cluster, "queue": queue})
        manifest = build_manifest(
            job.model_copy(update={"jobs": settings, "cluster": ClusterJobs(image="i")})
        )
        assert manifest["metadata"]["labels"].get(PRIORITY_LABEL) == found
