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
        "with LocalOrder(Path(sys.argv[1])) as order, order.turn(1, lambda said: None):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "order.json"
    ended = subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert json.loads(file.read_text())["running"] is not None
    with LocalOrder(file) as order, order.turn(1, pytest.fail):
        assert len(json.loads(file.read_text())["askers"]) == 1
    assert json.loads(file.read_text())["askers"] == []


def test_a_wait_that_is_interrupted_leaves_the_order(tmp_path: Path) -> None:
    def interrupt(said: str) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "order.json"
    with LocalOrder(file) as one, one.turn(1, lambda said: None):
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


# A worker that renders rows: it puts a row's record, and after it looks whether to give way.
ROWS = """
import os, sys, time
from pathlib import Path
from hvkf.errors import GaveWay
from hvkf.jobs.turns import GiveWay
from hvkf.storage import FolderStore

store, log = FolderStore(Path(sys.argv[1])), Path(sys.argv[2])
name, priority, rows, row_s, within_s = sys.argv[3], sys.argv[4], sys.argv[5], *sys.argv[6:]
gives_way = GiveWay(priority, float(within_s))
for row in rows.split(","):
    path = f"out/{name}/{row}"
    if store.exists(path):
        continue
    end_s = time.monotonic() + float(row_s)
    while time.monotonic() < end_s:
        time.sleep(0.01)
        found = gives_way.look()
        if found is not None and found.at_once:
            with log.open("a") as sink:
                sink.write(f"{name} gives {row} back\\n")
            sys.exit(GaveWay.exit_code)
    store.put(path, b"")
    with log.open("a") as sink:
        sink.write(f"{name} {row}\\n")
    if gives_way.look() is not None:
        sys.exit(GaveWay.exit_code)
"""


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


class Rows:
    """A workspace whose renders are processes of the script above, and the order of their rows."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = FolderStore(folder / "workspace")
        self.log = folder / "rows.txt"
        self.log.touch()
        self.row_s = {"large": 0.05, "urgent": 0.01}
        self.within_s = 60.0
        self.said: list[str] = []
        script = folder / "rows.py"
        script.write_text(ROWS)

        def command(job: JobSpec, parts: list[int]) -> list[str]:
            plan = self.plans[job.plan]
            rows = [row for part in parts for row in plan.parts[part].work["rows"]]
            settings = [job.plan, job.priority, ",".join(map(str, rows))]
            figures = [str(self.row_s[job.plan]), str(self.within_s)]
            places = [str(self.store.root), str(self.log)]
            return [sys.executable, str(script), *places, *settings, *figures]

        monkeypatch.setattr(local, "worker_command", command)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        self.plans: dict[str, Plan] = {}

    def plan(self, name: str, num_rows: int, **settings: object) -> Plan:
        """Plan a render whose rows are one part."""
        part = Part(
            index=0,
            outputs=tuple(f"out/{name}/{row}" for row in range(num_rows)),
            work={"rows": list(range(num_rows))},
        )
        plan = plan_of("render", 0, 1, **settings)
        self.plans[name] = plan.model_copy(update={"digest": name, "parts": (part,)})
        return self.plans[name]

    def run_beside(self, large: Plan, urgent: Plan, after_rows: int) -> list[str]:
        """Run both; the urgent one asks when the large one has done so many rows."""
        listener = Listener(lambda index, event: None, self.said.append)
        threads = [
            threading.Thread(target=run_plan, args=(plan, self.store, listener))
            for plan in (large, urgent)
        ]
        threads[0].start()
        until_s = time.monotonic() + 60
        order = turns.order_file(self.store.url)
        while len(self.done()) < after_rows or '"running": "' not in _text(order):
            assert time.monotonic() < until_s
            time.sleep(0.005)
        threads[1].start()
        self.asked_after = len(self.done())
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        return self.done()

    def done(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    return Rows(tmp_path, monkeypatch)


def test_an_urgent_render_begins_after_the_row_at_work_not_after_its_part(rows: Rows) -> None:
    """Six urgent rows waited until all 175 rows of the other were done: it was one part."""
    large = rows.plan("large", 60, part_minutes=20.0)
    urgent = rows.plan("urgent", 6, priority="urgent", urgent_within_s=60.0)
    found = rows.run_beside(large, urgent, after_rows=3)
    first = found.index("urgent 0")
    assert first - rows.asked_after <= 2, "the row at work, and one that began while it asked"
    assert found[first : first + 6] == [f"urgent {row}" for row in range(6)]
    assert sorted(found) == sorted({*found}), "no row was done twice"
    assert len(found) == 66
    waited = next(line for line in rows.said if "waits for its turn" in line)
    assert "render large (normal, process" in waited
    assert "gives way at the end of its row, within 60 s" in waited


def test_a_row_that_goes_on_for_longer_than_an_urgent_one_should_wait_is_given_back(
    rows: Rows,
) -> None:
    rows.row_s["large"], rows.within_s = 3.0, 0.2
    large = rows.plan("large", 2)
    urgent = rows.plan("urgent", 2, priority="urgent")
    found = rows.run_beside(large, urgent, after_rows=0)
    assert found[:3] == ["large gives 0 back", "urgent 0", "urgent 1"]
    assert found[3:] == ["large 0", "large 1"]


def test_who_gives_way_again_and_again_is_not_given_up(rows: Rows) -> None:
    """A part may be started `max_attempts` times, here two; giving way is none of them."""
    large = rows.plan("large", 12)
    listener = Listener(lambda index, event: None, rows.said.append)
    thread = threading.Thread(target=run_plan, args=(large, rows.store, listener))
    thread.start()
    for number in range(4):
        rows.row_s[f"urgent{number}"] = 0.01
        urgent = rows.plan(f"urgent{number}", 1, priority="urgent")
        done = len(rows.done())
        until_s = time.monotonic() + 60
        while thread.is_alive() and len(rows.done()) <= done:
            assert time.monotonic() < until_s
            time.sleep(0.005)
        run_plan(urgent, rows.store, listener)
    thread.join(120)
    assert not thread.is_alive()
    assert len([line for line in rows.done() if line.startswith("large ")]) == 12


@pytest.mark.parametrize(
    ("turn_since_s", "gives_way_s", "said"),
    [
        (1000.0, None, "render 3f2a (low, process 7) has it for about 19 minutes"),
        (1000.0, 120.0, "render 3f2a (low, process 7) gives way at the end of its row, within 2 m"),
        (-9000.0, None, "render 3f2a (low, process 7) ends its own"),
        (None, None, "render 3f2a (low, process 7) is before it"),
    ],
)
def test_who_waits_is_told_for_whom_and_about_how_long(
    turn_since_s: float | None, gives_way_s: float | None, said: str
) -> None:
    asker = turns.Asker(
        key="k",
        name="render 3f2a",
        rank=0,
        weight=1.0,
        used_s=0.0,
        joined_s=0.0,
        turn_since_s=turn_since_s,
        turn_minutes=20.0,
        process=7,
        process_started_s=0.0,
    )
    assert asker.sentence(1060.0, gives_way_s).startswith(said)
