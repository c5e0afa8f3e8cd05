"""Who keeps a job: owners come, share, leave and die, and the last one's job goes with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hvkf.errors import BadInput
from hvkf.jobs import owners
from hvkf.jobs.kubernetes import Cluster
from hvkf.records import Plan
from hvkf.settings.jobs import ClusterJobs
from hvkf.storage import FolderStore
from tests.commands import run_command
from tests.jobs.running_cluster import ROOT, RunningCluster
from tests.jobs.waiting import DONE, Interrupted, Waiter, plan_of

UNTIL = 'n=0; until [ -e "$OUT/enough" ]; do n=$((n+1)); echo turn $n; sleep 0.1; done'


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "workspace").mkdir()
    return FolderStore(tmp_path / "workspace")


@pytest.fixture
def plan(store: FolderStore) -> Plan:
    return plan_of(store, f"{UNTIL}; {DONE}")


def start_flow(plan: Plan, store: FolderStore, owner: str) -> "subprocess.Popen[str]":
    """Wait for a plan in a process of its own."""
    file = store.root.parent / "plan.json"
    file.write_text(plan.model_dump_json())
    command = [sys.executable, "-m", "tests.jobs.waiting", str(file), str(store.root), owner]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for(is_so: Callable[[], bool], limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_a_run_that_goes_on_elsewhere_keeps_its_job_and_takes_it_up_there(
    cluster: RunningCluster, store: FolderStore, plan: Plan
) -> None:
    first = Waiter(plan, store, "flow-run", moves=True)
    wait_for(lambda: first.said("turn"))
    (job,) = cluster.jobs()
    first.cancel()
    assert isinstance(first.end().fault, Interrupted)
    assert first.said("goes on: this run waits for it elsewhere")
    second = Waiter(plan, store, "flow-run")
    wait_for(lambda: second.said("is there already"))
    store.put("enough", b"")
    second.result()
    assert [found["metadata"]["uid"] for found in cluster.jobs()] == [job["metadata"]["uid"]]


def test_a_flow_that_is_killed_and_run_again_adopts_its_job_and_goes_on_with_its_log(
    cluster: RunningCluster, store: FolderStore, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvkf.jobs.watched.ADOPTED_LINES", 3)
    flow = start_flow(plan, store, "flow-run")
    assert flow.stdout is not None
    with flow.stdout as said:
        for line in said:
            if line.startswith("turn 20"):
                break
        flow.send_signal(signal.SIGKILL)
        flow.wait()
    (job,) = cluster.jobs()
    waiter = Waiter(plan, store, "flow-run")
    wait_for(lambda: waiter.said("turn"))
    store.put("enough", b"")
    waiter.result()
    assert [found["metadata"]["uid"] for found in cluster.jobs()] == [job["metadata"]["uid"]]
    assert waiter.said("is there already: waiting for it")
    turns = [int(line.split()[1]) for line in waiter.lines if line.startswith("turn")]
    assert turns[0] > 15, "what was told before is not told again"
    assert turns == list(range(turns[0], turns[-1] + 1))


def test_two_flows_that_ask_for_the_same_work_share_a_job(
    cluster: RunningCluster, store: FolderStore, plan: Plan
) -> None:
    both = [Waiter(plan, store, owner) for owner in ("one", "two")]
    wait_for(lambda: all(waiter.said("turn") for waiter in both))
    (job,) = cluster.jobs()
    names = {name for name in job["metadata"]["annotations"] if name.startswith("owner.hvkf/")}
    assert names == {"owner.hvkf/one", "owner.hvkf/two"}
    store.put("enough", b"")
    for waiter in both:
        waiter.result()
    assert len(cluster.pods()) == 1


def test_a_job_outlives_one_owners_cancel_and_goes_with_the_last_within_10_s(
    cluster: RunningCluster, store: FolderStore, plan: Plan
) -> None:
    first, last = (Waiter(plan, store, owner) for owner in ("first", "last"))
    wait_for(lambda: first.said("turn") and last.said("turn"))
    first.cancel()
    assert isinstance(first.end().fault, Interrupted)
    (job,) = cluster.jobs()
    assert "deletionTimestamp" not in job["metadata"]
    assert "owner.hvkf/first" not in job["metadata"]["annotations"]
    store.put("made", b"before")
    began_s = time.monotonic()
    last.cancel()
    cluster.wait(
        lambda seen: all("deletionTimestamp" in j["metadata"] for j in seen.objects.all("jobs"))
    )
    assert time.monotonic() - began_s < 10
    assert isinstance(last.end().fault, Interrupted)
    cluster.wait(lambda seen: not seen.objects.all("jobs") and not seen.objects.all("pods"))
    assert store.read("made") == b"before"


def test_a_cancel_does_not_hang_on_an_api_that_is_away(
    cluster: RunningCluster, store: FolderStore, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvkf.jobs.owners.LEAVE_TIMEOUT_S", 1.0)
    waiter = Waiter(plan, store)
    wait_for(lambda: waiter.said("turn"))
    cluster.api.rule = lambda request: "drop" if request.method.value != "GET" else None
    waiter.cancel()
    assert isinstance(waiter.end().fault, Interrupted)
    assert waiter.said("`hvkf jobs reap` does so when its lease has ended")


def test_a_flow_that_is_killed_for_good_leaves_no_job_once_its_lease_has_ended(
    cluster: RunningCluster, store: FolderStore
) -> None:
    plan = plan_of(store, UNTIL, cluster={"api_outage_s": 1, "lease_s": 3})
    flow = start_flow(plan, store, "gone")
    assert flow.stdout is not None
    with flow.stdout as said:
        next(line for line in said if line.startswith("turn 40"))  # it has renewed its lease
        flow.send_signal(signal.SIGKILL)
        flow.wait()
    with closing(Cluster(ClusterJobs(namespace="hvkf"))) as client:
        assert list(owners.reap(client)) == [], "its lease has not ended"
        wait_for(lambda: list(owners.reap(client)) != [])
    cluster.wait(lambda seen: not seen.objects.all("jobs") and not seen.objects.all("pods"))


def test_a_lease_is_renewed_while_a_job_is_waited_for(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = Waiter(
        plan_of(store, f"{UNTIL}; {DONE}", cluster={"api_outage_s": 1, "lease_s": 3}), store
    )
    wait_for(lambda: waiter.said("turn"))
    with closing(Cluster(ClusterJobs(namespace="hvkf"))) as client:
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            assert list(owners.reap(client)) == []
            time.sleep(0.2)
    store.put("enough", b"")
    waiter.result()


def test_the_commands_release_and_reap_name_what_they_delete(
    cluster: RunningCluster, store: FolderStore, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    waiter = Waiter(plan, store, "flow-run")
    wait_for(lambda: waiter.said("turn"))
    (job,) = cluster.jobs()
    with pytest.raises(BadInput, match="Nobody is there to be asked: add --yes"):
        run_command("jobs", "reap")
    run_command("jobs", "reap", "--yes")
    assert "is deleted" not in capsys.readouterr().out
    run_command("jobs", "release", "another", "--yes")
    assert "is deleted" not in capsys.readouterr().out
    with pytest.raises(BadInput, match="Delete the jobs of flow-run alone in namespace"):
        run_command("jobs", "release", "flow-run")
    run_command("jobs", "release", "flow-run", "--yes")
    assert f"{job['metadata']['name']} is deleted" in capsys.readouterr().out
    assert "was deleted while it ran" in str(waiter.end().fault)
