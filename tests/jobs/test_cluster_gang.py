"""Gangs: all members start or none do, one that is lost ends the attempt, the next goes on."""

import time
from pathlib import Path
from typing import Any

import pytest

from hvkf.errors import BadInput, HvkfError, TryAgain
from hvkf.storage import FolderStore
from tests.jobs.cluster_objects import set_condition
from tests.jobs.running_cluster import RunningCluster
from tests.jobs.waiting import Waiter, plan_of

SAVE = "trap 'echo saved; exit 143' TERM"
STEPS = 'while true; do echo "member $JOB_COMPLETION_INDEX steps"; sleep 0.1; done'
FINISH = 'mkdir -p "$OUT/out"; echo done > "$OUT/out/0"'
# The first attempt of each member does what the test is about, further ones finish.
LATER = f'mkdir "$OUT/$JOB_COMPLETION_INDEX-began" 2>/dev/null || {{ {FINISH}; exit 0; }}'
IS_ONE = "[ $JOB_COMPLETION_INDEX = 1 ]"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "workspace").mkdir()
    return FolderStore(tmp_path / "workspace")


def gang(store: FolderStore, script: str, owner: str = "me", **jobs: Any) -> Waiter:
    """Wait for a gang of two whose members run a script."""
    plan = plan_of(store, script, stage="train", **{"nodes": 2, **jobs})
    return Waiter(plan, store, owner)


def attempts(cluster: RunningCluster) -> list[str]:
    """Name the jobs that there ever were, without their digests."""
    names = cluster.do(
        lambda seen: [
            entry.object["metadata"]["name"]
            for entry in seen.objects.journal
            if entry.kind == "jobs" and entry.action == "ADDED"
        ]
    )
    return [name.rsplit("-", 1)[1] for name in names]


def test_a_member_that_fails_ends_the_attempt_and_the_next_goes_on(
    cluster: RunningCluster, store: FolderStore
) -> None:
    fails = f"{IS_ONE} && {{ echo lost it; exit 75; }}"
    waiter = gang(store, f"{LATER}; {fails}; {SAVE}; {STEPS}").result()
    assert attempts(cluster) == ["1", "2"]
    assert waiter.said("saved"), "the others are told to stop, and may save"
    assert waiter.said("train: attempt 1 ended: train member 1 ")
    assert waiter.said("met a fault that may pass: lost it")


def test_an_evicted_member_ends_the_attempt_and_all_its_pods_are_gone_before_the_next(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = gang(store, f"{LATER}; {SAVE}; {STEPS}")
    lost = cluster.running(index=1)
    cluster.running(index=0)
    cluster.do(lambda seen: seen.pods.evict(lost, "PreemptionByScheduler"))
    waiter.result()
    assert waiter.said("was preempted by pods of higher priority")
    journal = cluster.do(lambda seen: list(seen.objects.journal))
    second = next(
        entry.version
        for entry in journal
        if entry.kind == "jobs" and entry.object["metadata"]["name"].endswith("-2")
    )
    ended = {
        entry.object["metadata"]["name"]
        for entry in journal
        if entry.kind == "pods"
        and entry.version < second
        and entry.object["status"]["phase"] in ("Failed", "Succeeded")
    }
    begun = {
        x.object["metadata"]["name"] for x in journal if x.kind == "pods" and x.version < second
    }
    assert begun == ended


def test_a_silent_member_is_missed_though_the_others_speak(
    cluster: RunningCluster, store: FolderStore
) -> None:
    hangs = f"{IS_ONE} && {{ echo hangs; sleep 60 & wait; }}"
    waiter = gang(store, f"{LATER}; {hangs}; {SAVE}; {STEPS}", stall_s=3).result()
    assert attempts(cluster) == ["1", "2"]
    assert waiter.said("member 1 (hvkf-train-")
    assert waiter.said("was silent for more than jobs.train.stall_s=3 s")
    assert not waiter.said("member 0 (hvkf-train-")


def test_an_api_that_is_away_is_not_taken_for_silence(
    cluster: RunningCluster, store: FolderStore
) -> None:
    ends = f'[ -e "$OUT/enough" ] && {{ {FINISH}; exit 0; }}'
    script = f"{SAVE}; while true; do echo steps; {ends}; sleep 0.1; done"
    waiter = gang(store, script, stall_s=2.5)
    cluster.running(index=0)
    cluster.running(index=1)
    cluster.api.is_away = True
    time.sleep(4)
    cluster.api.is_away = False
    time.sleep(0.5)
    store.put("enough", b"")
    waiter.result()
    assert attempts(cluster) == ["1"]


def test_a_member_on_a_lost_node_is_missed_though_its_log_cannot_be_read(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = gang(store, f"{LATER}; {SAVE}; {STEPS}", stall_s=3)
    cluster.running(index=0)
    lost = cluster.running(index=1)
    cluster.api.rule = lambda request: "500" if request.name == lost else None
    mark = {"reason": "NodeNotReady"}
    cluster.do(
        lambda seen: seen.objects.change(
            "pods", lost, lambda pod: set_condition(pod, "Ready", "False", **mark)
        )
    )
    waiter.result()
    assert waiter.said(f"member 1 ({lost}) was silent for more than")
    assert attempts(cluster) == ["1", "2"]


def test_a_log_that_cannot_be_read_is_not_taken_for_silence(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.api.rule = lambda request: "500" if request.subresource == "log" else None
    script = f"{SAVE}; for n in $(seq 25); do echo step; sleep 0.1; done; {FINISH}"
    gang(store, script, stall_s=1).result()
    assert attempts(cluster) == ["1"]


def test_a_gang_that_stalls_is_ended_for_all_who_wait_for_it(
    cluster: RunningCluster, store: FolderStore
) -> None:
    """Whoever sees the stall ends the job, or each would find the other's and wait again."""
    script = f"{LATER}; echo hangs; {SAVE}; sleep 60 & wait"
    both = [gang(store, script, owner, stall_s=1) for owner in ("one", "two")]
    for waiter in both:
        waiter.result()
    assert attempts(cluster) == ["1", "2"]


def test_no_more_attempts_are_made_than_allowed(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = gang(store, "echo again; exit 75", max_restarts=2).end()
    assert isinstance(waiter.fault, TryAgain)
    assert "met a fault that may pass: again" in str(waiter.fault)
    assert attempts(cluster) == ["1", "2", "3"]


def test_bad_input_of_one_member_is_the_gangs_and_is_not_tried_again(
    cluster: RunningCluster, store: FolderStore
) -> None:
    fails = f"{IS_ONE} && {{ echo 'error: no such LoRA'; exit 65; }}"
    with pytest.raises(BadInput, match=r"train member 1 .* no such LoRA"):
        gang(store, f"{fails}; {SAVE}; {STEPS}").result()
    assert attempts(cluster) == ["1"]


def test_a_member_without_a_node_keeps_the_gang_from_starting_and_is_named(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.do(lambda seen: setattr(seen.pods, "num_gpus", 8))
    waiter = gang(store, f"{SAVE}; {STEPS}", gpus_per_pod=8, start_timeout_s=2).end()
    assert isinstance(waiter.fault, BadInput)
    assert "1 of 2 pods started within 2 s" in str(waiter.fault)
    assert "Insufficient nvidia.com/gpu" in str(waiter.fault)
    cluster.wait(lambda seen: not seen.objects.all("jobs"))


def test_only_the_first_members_progress_is_the_gangs(
    cluster: RunningCluster, store: FolderStore
) -> None:
    progress = """echo '@progress {"label": "train", "done": 1, "total": 2, "note": ""}'"""
    waiter = gang(store, f"{progress}; {FINISH}").result()
    assert [index for index, _ in waiter.progress] == [0]


def test_a_gang_that_fails_for_a_reason_of_its_own_is_started_as_often_as_parts_are(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = gang(store, "exit 1", max_attempts=2).end()
    assert type(waiter.fault) is HvkfError
    assert attempts(cluster) == ["1", "2"]
