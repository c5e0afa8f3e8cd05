"""The local executor: real processes, shared parts, faults told apart, nobody left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from hvkf import crashes
from hvkf.crashes import CRASHES, CrashNote, find_crash
from hvkf.errors import BadInput, TryAgain
from hvkf.jobs import local
from hvkf.jobs.local import run_plan, share_out
from hvkf.jobs.spec import Listener
from hvkf.records import Part, Plan
from hvkf.settings.jobs import StageJobs
from hvkf.storage import FolderStore

# A worker that does what hvkf's workers do: says how far it is, and puts its parts' outputs.
WORKER = """
import os, pathlib, signal, sys, time
root, parts = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
for part in parts:
    starts = root / f"starts-{part}"
    starts.write_text(str(int(starts.read_text()) + 1 if starts.exists() else 1))
    mode = (root / f"mode-{part}").read_text() if (root / f"mode-{part}").exists() else ""
    if mode == "bad":
        print("error: row 3 is no picture", flush=True)
        sys.exit(65)
    if mode == "die-once" and starts.read_text() == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "away":
        print("error: the store is away", flush=True)
        sys.exit(75)
    if mode == "hang":
        print("hanging", flush=True)
        time.sleep(600)
    (root / "out" / part).write_text("done")
    print('@progress {"label": "x", "done": 1, "total": 1, "failed": 0, "note": ""}', flush=True)
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    """A workspace, with workers that run the script above in place of a stage."""
    (tmp_path / "out").mkdir()
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))

    def command(job: object, parts: list[int]) -> list[str]:
        return [sys.executable, str(script), str(tmp_path), ",".join(map(str, parts))]

    monkeypatch.setattr(local, "worker_command", command)
    return FolderStore(tmp_path)


def make_plan(num_parts: int, workers: int, max_attempts: int = 3) -> Plan:
    parts = tuple(
        Part(index=index, outputs=(f"out/{index}",), work={}) for index in range(num_parts)
    )
    jobs = StageJobs(workers=workers, max_attempts=max_attempts)
    config = {"jobs": {"cache": jobs.model_dump()}}
    return Plan(stage="cache", digest="d", config=config, inputs={}, parts=parts)


def listen() -> tuple[Listener, list[object], list[str]]:
    events: list[object] = []
    lines: list[str] = []
    return Listener(lambda worker, event: events.append(event), lines.append), events, lines


def starts(store: FolderStore, part: int) -> int:
    return int((store.root / f"starts-{part}").read_text())


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_all_parts_are_done_by_any_number_of_workers(store: FolderStore, workers: int) -> None:
    listener, events, _ = listen()
    run_plan(make_plan(5, workers), store, listener)
    assert [starts(store, part) for part in range(5)] == [1] * 5
    assert len(events) == 5


def test_a_worker_that_is_killed_for_memory_is_not_started_again(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = tmp_path / "vmstat"
    counts.write_text("nr_free_pages 1\noom_kill 3\n")
    monkeypatch.setattr(crashes, "VMSTAT", counts)
    (store.root / "mode-0").write_text("die-once")

    def on_progress(worker: int, event: object) -> None:
        counts.write_text("nr_free_pages 1\noom_kill 4\n")

    with pytest.raises(BadInput, match="memory ran out: raise this machine's"):
        run_plan(make_plan(2, workers=2), store, Listener(on_progress, lambda line: None))
    assert (store.root / "starts-0").read_text() == "1"


def test_a_killed_worker_is_replaced_and_only_what_lacks_is_done_again(store: FolderStore) -> None:
    (store.root / "mode-1").write_text("die-once")
    listener, _, lines = listen()
    run_plan(make_plan(4, workers=2), store, listener)
    assert [starts(store, part) for part in range(4)] == [1, 2, 1, 1]
    assert any("starting again" in line for line in lines)


def test_a_crash_is_noted_under_the_workers_name_and_a_kill_is_none(store: FolderStore) -> None:
    (store.root / "mode-0").write_text("crash")
    (store.root / "mode-1").write_text("die-once")
    listener, _, lines = listen()
    with pytest.raises(TryAgain):
        run_plan(make_plan(2, workers=2, max_attempts=1), store, listener)
    (path,) = store.list(CRASHES)
    note = CrashNote.from_json(store.read(path))
    assert note.how == "SIGSEGV"
    assert find_crash(store, note.worker) == "SIGSEGV"
    assert f"worker {note.worker} crashed: SIGSEGV" in lines


def test_bad_input_ends_the_job_with_the_workers_sentence_after_the_others_are_done(
    store: FolderStore,
) -> None:
    (store.root / "mode-0").write_text("bad")
    with pytest.raises(BadInput, match="row 3 is no picture"):
        run_plan(make_plan(4, workers=2), store, listen()[0])
    assert starts(store, 0) == 1
    assert store.exists("out/1")
    assert store.exists("out/3")


def test_a_passing_fault_is_tried_as_often_as_set(store: FolderStore) -> None:
    (store.root / "mode-0").write_text("away")
    with pytest.raises(TryAgain, match="the store is away"):
        run_plan(make_plan(1, workers=1, max_attempts=2), store, listen()[0])
    assert starts(store, 0) == 2


def test_nothing_is_started_when_all_is_done(store: FolderStore) -> None:
    store.put("out/0", b"")
    run_plan(make_plan(1, workers=1), store, listen()[0])
    assert not (store.root / "starts-0").exists()


def test_workers_are_stopped_when_the_caller_is_interrupted(store: FolderStore) -> None:
    (store.root / "mode-0").write_text("hang")

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    before = set(psutil.Process().children())  # a service of other tests
    with pytest.raises(KeyboardInterrupt):
        run_plan(make_plan(1, workers=1), store, Listener(lambda *_: None, interrupt))
    after = set(psutil.Process().children()) - before
    assert not [child for child in after if child.status() != "zombie"]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """The real `hvkf` worker asks the kernel for it before it does anything else."""
    child = (
        "import time, hvkf.processes; hvkf.processes.follow_parent(); print('ready', flush=True); "
        "time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys\n"
        "os.environ['HVKF_PARENT'] = str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_parts_are_dealt_in_turn() -> None:
    assert share_out(range(5), 2) == [(0, 2, 4), (1, 3)]
    assert share_out(range(2), 8) == [(0,), (1,)]
