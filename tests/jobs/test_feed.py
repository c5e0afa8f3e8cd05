"""The waiting task rides out what APIs and connections do, and misses nothing meanwhile."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import kmock
import pytest

from hvkf.errors import TryAgain
from hvkf.jobs.feed import comparable
from hvkf.storage import FolderStore
from tests.jobs.running_cluster import RunningCluster
from tests.jobs.waiting import DONE, Waiter, plan_of

SLOW = f"for n in $(seq 15); do echo line $n; sleep 0.1; done; {DONE}"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "workspace").mkdir()
    return FolderStore(tmp_path / "workspace")


def every(
    number: int, fault: str, which: Callable[[kmock.Request], bool] = lambda request: True
) -> Callable[[kmock.Request], str | None]:
    """Make a rule: of each so many requests of a kind, the first meets a fault."""
    count = itertools.count()
    return lambda request: fault if which(request) and next(count) % number == 0 else None


def is_watch(request: kmock.Request) -> bool:
    return "watch" in request.params


def is_list(request: kmock.Request) -> bool:
    return request.method.value == "GET" and request.name is None and not is_watch(request)


@pytest.mark.parametrize("fault", ["429", "500", "503", "drop"])
def test_a_job_is_waited_for_although_every_other_request_fails(
    cluster: RunningCluster, store: FolderStore, fault: str
) -> None:
    cluster.api.rule = every(2, fault)
    waiter = Waiter(plan_of(store, SLOW, num_parts=2), store).result()
    for n in range(1, 16):
        assert waiter.lines.count(f"line {n}") == 2, "no line is lost, and none is told twice"
    assert cluster.api.errors_met[fault] > 5
    assert len(cluster.jobs()) == 1


def test_watches_that_break_off_after_each_event_go_on_from_it(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.api.rule = every(1, "later-drop", is_watch)
    Waiter(plan_of(store, DONE, num_parts=3), store).result()
    places = [version for kind, version in cluster.api.watched_from if kind == "pods"]
    assert len(places) > 5
    assert places == sorted(places)
    assert len(set(places)) > 5, "each goes on behind what was seen"


def test_a_version_that_is_forgotten_is_listed_anew(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.api.watch_limit_s = 0.2
    ended = threading.Event()

    def forget() -> None:
        while not ended.wait(0.3):
            cluster.do(lambda seen: setattr(seen.objects, "forgotten", seen.objects.version + 1))

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        Waiter(plan_of(store, SLOW, num_parts=2), store).result()
    finally:
        ended.set()
        thread.join()
    lists = [
        request
        for request in cluster.api.seen
        if request.name is None and request.method.value == "GET" and not is_watch(request)
    ]
    assert len(lists) > 6


def test_a_new_list_that_fails_is_tried_again_as_watches_are(
    cluster: RunningCluster, store: FolderStore
) -> None:
    script = f'until [ -e "$OUT/enough" ]; do echo step; sleep 0.1; done; {DONE}'
    waiter = Waiter(plan_of(store, script), store)
    cluster.running()
    cluster.api.rule = every(2, "503", is_list)
    cluster.api.watch_limit_s = 0.1
    cluster.do(lambda seen: setattr(seen.objects, "forgotten", seen.objects.version + 100))
    cluster.wait(lambda _: cluster.api.errors_met["503"] > 2)
    cluster.do(lambda seen: setattr(seen.objects, "forgotten", 0))
    store.put("enough", b"")
    waiter.result()


def test_a_list_whose_place_is_forgotten_between_pages_is_begun_again(
    cluster: RunningCluster, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvkf.jobs.kubernetes.LIST_CHUNK", 1)
    Waiter(plan_of(store, DONE, num_parts=2), store).result()
    (store.root / "out" / "0").unlink()
    cluster.api.num_expired_pages = 2
    Waiter(plan_of(store, DONE, num_parts=2), store).result()
    assert cluster.api.num_expired_pages == 0


def test_a_created_job_whose_answer_is_lost_is_found_as_the_own_one(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.api.rule = every(2, "lose", lambda request: request.method.value == "POST")
    Waiter(plan_of(store, DONE), store).result()
    assert len(cluster.jobs()) == 1


def test_an_api_that_stays_away_ends_the_wait_and_says_for_how_long(
    cluster: RunningCluster, store: FolderStore
) -> None:
    plan = plan_of(store, SLOW, cluster={"api_outage_s": 1.0})
    waiter = Waiter(plan, store)
    cluster.running()
    cluster.api.is_away = True
    with pytest.raises(TryAgain, match="The Kubernetes API"):
        waiter.result()


def test_a_log_that_cannot_be_read_fails_nothing(
    cluster: RunningCluster, store: FolderStore
) -> None:
    cluster.api.forbidden = {("get", "pods/log")}
    waiter = Waiter(plan_of(store, DONE), store).result()
    assert waiter.said("the log cannot be read: system:serviceaccount:hvkf:hvkf-flow may not get")


def test_times_without_trailing_zeros_sort_as_they_are() -> None:
    moments = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.1Z", "2026-01-01T00:00:00.12Z"]
    assert sorted(moments, key=comparable) == moments
    assert sorted(moments) != moments, "their text does not"
