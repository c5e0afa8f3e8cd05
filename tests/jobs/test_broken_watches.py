"""What comes of a watch whose connection was closed in the middle is no event; no thread dies."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvkf.errors import HvkfError
from hvkf.jobs import kubernetes
from hvkf.jobs.feed import Feed
from hvkf.jobs.kubernetes import Cluster
from hvkf.jobs.kubernetes_faults import ApiDown
from hvkf.settings.jobs import ClusterJobs
from hvkf.storage import FolderStore
from tests.jobs.running_cluster import RunningCluster
from tests.jobs.waiting import DONE, Waiter, plan_of

EVENT = json.dumps({"type": "ADDED", "object": {"metadata": {"resourceVersion": "1"}}}).encode()
# A character of two bytes, of which one came.
CUT = '{"type": "ADDED", "object": {"message": "ä'.encode()[:-1]


class Answer:
    """An answer that ends after some bytes."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def stream(self, amt: Any, decode_content: bool) -> Iterator[bytes]:
        yield from self._chunks

    def close(self) -> None:
        """Nothing is open."""


def test_bytes_behind_the_last_line_of_a_watch_are_no_line() -> None:
    assert list(kubernetes._lines(Answer(EVENT + b"\n", CUT))) == [EVENT]
    assert list(kubernetes._lines(Answer(b"one\ntwo"), with_rest=True)) == [b"one", b"two"]


@pytest.mark.parametrize("line", [CUT, b"\xff\xfe", b"[]", b"null", b'{"type": "ADDED"}'])
def test_a_line_that_is_no_event_is_a_connection_that_was_lost(line: bytes) -> None:
    with pytest.raises(ApiDown, match="which is no event"):
        kubernetes._event_of(line)


def test_a_job_is_waited_for_although_watches_send_bytes_that_are_no_text(
    cluster: RunningCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_lines = kubernetes._lines
    broken: list[bytes] = []

    def lines(response: Any, *, with_rest: bool = False) -> Iterator[bytes]:
        for line in true_lines(response, with_rest=with_rest):
            yield line
            if not with_rest and len(broken) < 5:
                broken.append(line)
                yield line[:20] + b"\xe4"

    monkeypatch.setattr(kubernetes, "_lines", lines)
    (tmp_path / "workspace").mkdir()
    store = FolderStore(tmp_path / "workspace")
    Waiter(plan_of(store, DONE, num_parts=2), store).result()
    assert len(broken) == 5


def test_whoever_waits_hears_of_a_thread_that_ends_by_an_error_of_its_own(
    cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(*arguments: object) -> None:
        raise ZeroDivisionError("an error of ours")

    client = Cluster(ClusterJobs(image="image:1"))
    monkeypatch.setattr(client, "watch", watch)
    with Feed(client, "") as feed:
        message = feed.messages.get(timeout=10)
        while message.kind != "fault":
            message = feed.messages.get(timeout=10)
    client.close()
    assert isinstance(message.value, HvkfError)
    assert "ZeroDivisionError: an error of ours" in str(message.value)
