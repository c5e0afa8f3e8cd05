"""Two commands that want the same work: one does it, the other waits and says so."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from hvkf.jobs import local
from hvkf.jobs.one_at_a_time import POLL_S, alone
from hvkf.jobs.run import run_plan
from hvkf.jobs.spec import Listener
from hvkf.records import Part, Plan
from hvkf.storage import LOCK_NAME, FolderStore

WORKER = """
import pathlib, sys, time
root = pathlib.Path(sys.argv[1])
with (root / "starts").open("a") as starts:
    starts.write("one\\n")
time.sleep(1)
(root / "out" / "0").write_text("done")
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    """A workspace, with workers that count their starts in place of a stage."""
    (tmp_path / "out").mkdir()
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))

    def command(job: object, parts: list[int]) -> list[str]:
        return [sys.executable, str(script), str(tmp_path)]

    monkeypatch.setattr(local, "worker_command", command)
    return FolderStore(tmp_path)


def plan_of(stage: str, digest: str = "work") -> Plan:
    part = Part(index=0, outputs=("out/0",), work={})
    return Plan(stage=stage, digest=digest, config={}, inputs={}, parts=(part,))


def run_at_once(plans: list[Plan], store: FolderStore) -> list[str]:
    """Run plans in threads of their own; return what they said."""
    said: list[str] = []
    listener = Listener(lambda worker, event: None, said.append)
    threads = [threading.Thread(target=run_plan, args=(plan, store, listener)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said


@pytest.mark.parametrize("stage", ["ingest", "cache", "encode", "train", "evaluate"])
def test_the_work_of_two_commands_is_done_once(store: FolderStore, stage: str) -> None:
    said = run_at_once([plan_of(stage)] * 3, store)
    assert (store.root / "starts").read_text() == "one\n"
    assert len(said) == 2
    assert f"{stage}: process {os.getpid()} on " in said[0]
    assert said[0].endswith("does this work already; waiting for it")
    assert list(store.list("jobs")) == []


def test_other_work_does_not_wait(store: FolderStore) -> None:
    assert run_at_once([plan_of("train", "one run"), plan_of("train", "another")], store) == []
    assert (store.root / "starts").read_text() == "one\n" * 2


def test_work_whose_command_was_killed_is_taken_over(store: FolderStore) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from hvkf.jobs.one_at_a_time import alone\n"
        "from hvkf.storage import FolderStore\n"
        "from tests.jobs.test_one_at_a_time import plan_of\n"
        "with alone(plan_of('train'), FolderStore(pathlib.Path(sys.argv[1])), print):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout as output:
        assert output.readline() == "held\n"
        timer = threading.Timer(0.5, holder.send_signal, [signal.SIGKILL])
        timer.start()
        begun_s = time.monotonic()
        said = run_at_once([plan_of("train")], store)
    assert f"process {holder.pid} on" in said[0]
    assert time.monotonic() - begun_s < 30
    assert (store.root / "out" / "0").exists()


def test_who_has_only_just_begun_is_named_all_the_same(store: FolderStore) -> None:
    plan = plan_of("train")
    file = store.root / "jobs" / f"train-{plan.digest[:12]}" / LOCK_NAME
    file.parent.mkdir(parents=True)
    said: list[str] = []
    waiting = threading.Thread(
        target=run_plan, args=(plan, store, Listener(lambda worker, event: None, said.append))
    )
    with file.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        time.sleep(3 * POLL_S)  # long enough to be met while the file is still empty
        assert said == []
        lock.write(json.dumps({"process": 123, "host": "there"}))
        lock.flush()
        time.sleep(3 * POLL_S)
    waiting.join(60)
    assert said == ["train: process 123 on there does this work already; waiting for it"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_is_said_once(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: object, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hvkf.jobs.one_at_a_time.fcntl.flock", flock)
    said: list[str] = []
    with alone(plan_of("train"), store, said.append):
        pass
    (sentence,) = said
    assert sentence.startswith(f"train: the file system of {store.root / 'jobs'}")
    assert f"has no locks ({os.strerror(number)}): see to it that no other command" in sentence
