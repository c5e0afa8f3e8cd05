"""Data-parallel jobs, over real HTTP, on a small cluster whose pods are processes."""

import re
import time
from functools import partial
from pathlib import Path

import pytest

from hvkf.crashes import CRASHES, OUT_OF_MEMORY, find_crash
from hvkf.errors import BadInput, HvkfError, TryAgain
from hvkf.jobs.cluster_state import index_of
from hvkf.storage import FolderStore
from tests.jobs.cluster_objects import Object
from tests.jobs.running_cluster import RunningCluster
from tests.jobs.small_cluster import SmallCluster
from tests.jobs.waiting import DONE, Waiter, plan_of

FOREVER = "echo begun; while true; do sleep 0.1; done"
ONCE = 'mkdir "$OUT/$JOB_COMPLETION_INDEX-began" 2>/dev/null'


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "workspace").mkdir()
    return FolderStore(tmp_path / "workspace")


def test_each_part_is_done_by_a_pod_whose_words_and_progress_are_told(
    cluster: RunningCluster, store: FolderStore
) -> None:
    progress = """echo '@progress {"label": "cache", "done": 1, "total": 2, "note": ""}'"""
    script = f"echo part $JOB_COMPLETION_INDEX; {progress}; {DONE}"
    waiter = Waiter(plan_of(store, script, num_parts=3), store).result()
    assert [store.read(f"out/{n}") for n in range(3)] == [b"done\n"] * 3
    assert {f"part {n}" for n in range(3)} <= set(waiter.lines)
    assert sorted(index for index, _ in waiter.progress) == [0, 1, 2]
    (job,) = cluster.jobs()
    assert job["status"]["completedIndexes"] == "0-2"


def test_no_more_pods_run_at_a_time_than_there_are_workers(
    cluster: RunningCluster, store: FolderStore
) -> None:
    plan = plan_of(store, f"sleep 0.2; {DONE}", num_parts=4, workers=2)
    Waiter(plan, store).result()
    counts = cluster.do(
        lambda seen: [
            entry.object["status"].get("active", 0)
            for entry in seen.objects.journal
            if entry.kind == "jobs"
        ]
    )
    assert max(counts) == 2


def test_a_fault_that_passes_costs_a_start_and_no_more(
    cluster: RunningCluster, store: FolderStore
) -> None:
    Waiter(plan_of(store, f"{ONCE} && exit 75; {DONE}"), store).result()
    (job,) = cluster.jobs()
    assert job["status"]["failed"] == 1
    assert len(cluster.pods()) == 2


def test_a_part_that_always_fails_ends_after_its_starts_with_its_last_words(
    cluster: RunningCluster, store: FolderStore
) -> None:
    script = "echo one; echo two; exit 3"
    with pytest.raises(HvkfError, match=r"cache index 0 .*exit code 3: one \| two"):
        Waiter(plan_of(store, script, max_attempts=2), store).result()
    assert len(cluster.pods()) == 2


def test_a_poison_part_takes_no_other_down_and_is_named(
    cluster: RunningCluster, store: FolderStore
) -> None:
    poison = "[ $JOB_COMPLETION_INDEX = 1 ] && { echo 'error: row 3 is no picture.'; exit 65; }"
    waiter = Waiter(plan_of(store, f"{poison}; sleep 0.5; {DONE}", num_parts=3), store)
    with pytest.raises(BadInput, match=r"cache index 1 .*cannot use: row 3 is no picture\.$"):
        waiter.result()
    assert [store.exists(f"out/{n}") for n in range(3)] == [True, False, True]
    assert len(cluster.pods()) == 3, "bad input is not tried again"


def test_the_part_of_an_evicted_pod_is_taken_up_by_another(
    cluster: RunningCluster, store: FolderStore
) -> None:
    script = f"{ONCE} || {{ {DONE}; exit 0; }}; {FOREVER}"
    waiter = Waiter(plan_of(store, script, max_attempts=1), store)
    first = cluster.running()
    cluster.do(lambda seen: seen.pods.evict(first))
    waiter.result()
    (job,) = cluster.jobs()
    assert "failed" not in job["status"], "an eviction is no failure of the part"


def test_a_pod_without_enough_memory_says_what_to_raise(
    cluster: RunningCluster, store: FolderStore
) -> None:
    script = f"[ $JOB_COMPLETION_INDEX = 0 ] || {{ {DONE}; exit 0; }}; {FOREVER}"
    waiter = Waiter(plan_of(store, script, num_parts=2, max_attempts=3), store)
    name = cluster.running()
    cluster.do(lambda seen: seen.pods.run_out_of_memory(name))
    with pytest.raises(BadInput, match=r"used more memory than it has.*raise memory"):
        waiter.result()
    assert len(cluster.pods()) == 2, "another start would have no more memory"
    assert find_crash(store, name) == OUT_OF_MEMORY
    assert store.exists("out/1"), "the other part is done"


def memory_of(pod: Object) -> str:
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    return str(limits["memory"])


def test_a_pod_without_enough_memory_is_started_once_more_with_what_is_set(
    cluster: RunningCluster, store: FolderStore
) -> None:
    plan = plan_of(store, FOREVER, memory="1Gi", memory_once_more="3Gi", max_attempts=5)
    waiter = Waiter(plan, store)
    first = cluster.running()
    cluster.do(lambda seen: seen.pods.run_out_of_memory(first))
    (second,) = cluster.wait(lambda seen: set(seen.pods.running) - {first})
    assert [memory_of(pod) for pod in cluster.pods()] == ["1Gi", "3Gi"]
    cluster.do(lambda seen: seen.pods.run_out_of_memory(second))
    with pytest.raises(BadInput, match=r"used more memory than it has.*raise memory"):
        waiter.result()
    assert len(cluster.pods()) == 2, "once"
    assert waiter.said("Starting once more, with jobs.cache.memory_once_more=3Gi.")


def test_a_pod_that_was_killed_for_another_reason_is_started_again(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = Waiter(plan_of(store, f"{ONCE} && kill -9 $$; {DONE}", max_attempts=2), store)
    waiter.result()
    assert len(cluster.pods()) == 2


def test_a_pods_crash_is_noted_under_its_name(cluster: RunningCluster, store: FolderStore) -> None:
    crash = f'{ONCE} && {{ echo "I am $HVKF_WORKER"; kill -SEGV $$; }}; {DONE}'
    waiter = Waiter(plan_of(store, crash, max_attempts=2), store).result()
    (note,) = store.list(CRASHES)
    name = note.rpartition("/")[2].removesuffix(".json")
    assert find_crash(store, name) == "SIGSEGV"
    assert {f"I am {name}", f"worker {name} crashed: SIGSEGV"} <= set(waiter.lines)
    assert len(cluster.pods()) == 2


@pytest.mark.parametrize("how", ["evicted", "killed"])
def test_an_eviction_or_a_kill_is_no_crash_of_the_worker(
    cluster: RunningCluster, store: FolderStore, how: str
) -> None:
    torn_apart = "trap 'kill -SEGV $$' TERM"
    script = f"{ONCE} || {{ {DONE}; exit 0; }}; {torn_apart}; {FOREVER}"
    waiter = Waiter(plan_of(store, script, max_attempts=2), store)
    first = cluster.running()
    if how == "evicted":
        cluster.do(lambda seen: seen.pods.evict(first))
    else:
        cluster.do(lambda seen: seen.pods.running[first].kill())
    waiter.result()
    assert list(store.list(CRASHES)) == []


def block_images(seen: SmallCluster, reason: str, message: str) -> None:
    """Let the node word anew why it has no image."""
    seen.pods.missing_images["image:1"] = (reason, message)
    for pod in seen.objects.all("pods"):
        waiting = {"waiting": {"reason": reason, "message": message}}
        seen.pods.tell_state(pod["metadata"]["name"], waiting)


def test_a_reason_that_is_worded_anew_is_told_once_and_its_words_go_to_the_runs_log(
    cluster: RunningCluster, store: FolderStore
) -> None:
    reasons = [
        ("ErrImagePull", "dial tcp 10.0.0.1:443: i/o timeout"),
        ("ImagePullBackOff", 'Back-off pulling image "image:1"'),
        ("ErrImagePull", "dial tcp 10.0.0.2:443: i/o timeout"),
    ]
    details: list[str] = []
    plan = plan_of(store, DONE)
    waiter = Waiter(plan, store, details=details)
    for number, (reason, message) in enumerate(reasons):
        cluster.do(partial(block_images, reason=reason, message=message))
        while len(details) <= number:
            time.sleep(0.05)
    assert sum("cannot be had" in line for line in waiter.lines) == 1
    (line,) = [line for line in waiter.lines if "cannot be had" in line]
    assert len(line) < 200
    for (_, words), detail in zip(reasons, details, strict=True):
        assert words in detail
    cluster.do(lambda seen: seen.delete_job(seen.objects.all("jobs")[0]["metadata"]["name"]))
    assert waiter.end().fault is not None


def test_a_job_that_outlasts_its_deadline_names_the_setting(
    cluster: RunningCluster, store: FolderStore
) -> None:
    with pytest.raises(BadInput, match=r"longer than jobs\.cache\.deadline_s=20"):
        Waiter(plan_of(store, FOREVER, deadline_s=20), store).result()


def test_a_job_that_no_node_can_take_says_which_resource_lacks(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.do(lambda seen: setattr(seen.pods, "num_gpus", 4))
    plan = plan_of(store, DONE, gpus_per_pod=8, start_timeout_s=1)
    waiter = Waiter(plan, store).end()
    assert isinstance(waiter.fault, BadInput)
    told = str(waiter.fault)
    assert "0 of 1 pod started within 1 s" in told
    assert "Insufficient nvidia.com/gpu" in told
    assert "lower jobs.cache.gpus_per_pod" in told
    cluster.wait(lambda seen: not seen.objects.all("jobs"))


def test_an_image_that_is_not_there_ends_at_once(
    cluster: RunningCluster, store: FolderStore
) -> None:
    said = ("ErrImagePull", 'failed to pull image "image:1": image:1: not found')
    cluster.do(lambda seen: seen.pods.missing_images.update({"image:1": said}))
    began_s = time.monotonic()
    with pytest.raises(BadInput, match=r"the image image:1 of cache cannot be had.*push it"):
        Waiter(plan_of(store, DONE), store).result()
    assert time.monotonic() - began_s < 30
    cluster.wait(lambda seen: not seen.objects.all("jobs"))


def test_a_job_that_someone_deletes_says_so(cluster: RunningCluster, store: FolderStore) -> None:
    waiter = Waiter(plan_of(store, FOREVER), store)
    cluster.running()
    (job,) = cluster.jobs()
    cluster.do(lambda seen: seen.delete_job(job["metadata"]["name"]))
    with pytest.raises(TryAgain, match="was deleted while it ran"):
        waiter.result()


def test_time_in_a_queue_is_told_and_does_not_count(
    cluster: RunningCluster, store: FolderStore
) -> None:
    waiter = Waiter(plan_of(store, DONE, queue="gpu", start_timeout_s=1), store)
    cluster.wait(lambda seen: seen.objects.all("jobs"))
    time.sleep(1.5)
    (job,) = cluster.jobs()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert not cluster.pods()
    name = job["metadata"]["name"]
    resume = {"suspend": False}
    cluster.do(lambda seen: seen.objects.change("jobs", name, lambda it: it["spec"].update(resume)))
    waiter.result()
    assert waiter.said("cache: queued in gpu")


def test_lines_above_the_limit_are_shown_when_the_pod_fails(
    cluster: RunningCluster, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvkf.jobs.pod_logs.MAX_LINES", 5)
    script = "for n in 1 2 3 4 5 6 7 8; do echo line $n; done"
    waiter = Waiter(plan_of(store, f"{script}; {DONE}"), store).result()
    assert [line for line in waiter.lines if line.startswith("line")] == [
        f"line {n}" for n in range(1, 6)
    ]
    (store.root / "out" / "0").unlink()
    failed = Waiter(plan_of(store, f"{script}; exit 65"), store).end()
    assert [line for line in failed.lines if line.startswith("line")] == [
        f"line {n}" for n in range(1, 9)
    ]


def test_a_log_that_breaks_off_is_read_on_from_its_last_line(
    cluster: RunningCluster, store: FolderStore
) -> None:
    """Nodes rotate logs, and proxies end long answers: the stream ends, and the pod goes on."""
    cluster.api.log_limit_s = 0.5
    script = f"for n in $(seq 12); do echo line $n; sleep 0.3; done; {DONE}"
    waiter = Waiter(plan_of(store, script), store).result()
    told = [line for line in waiter.lines if line.startswith("line")]
    assert told == [f"line {n}" for n in range(1, 13)]


def test_pods_say_which_part_they_are_by_their_index(
    cluster: RunningCluster, store: FolderStore
) -> None:
    Waiter(plan_of(store, DONE, num_parts=2), store).result()
    pods = cluster.pods()
    assert sorted(index_of(pod) for pod in pods) == [0, 1]
    for pod in pods:
        assert re.fullmatch(r"hvkf-cache-\w+-1-[01]-\w{5}", pod["metadata"]["name"])
