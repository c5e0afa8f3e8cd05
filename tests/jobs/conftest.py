"""A running cluster for the tests of jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.running_cluster import RunningCluster, running_cluster, use_kubeconfig


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningCluster]:
    """Run a small cluster, and point the Kubernetes client at it."""
    with running_cluster(tmp_path) as running:
        use_kubeconfig(tmp_path, running.address, monkeypatch)
        yield running
