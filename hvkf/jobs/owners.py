"""Who a job on the cluster is kept for: owners with leases, the last one's leave, the reaper."""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from hvkf.errors import HvkfError
from hvkf.jobs.cluster_state import finished, is_deleted, owners_of
from hvkf.jobs.kubernetes import Cluster
from hvkf.jobs.kubernetes_faults import Changed, NotFound
from hvkf.jobs.manifest import OWNER_PREFIX, PART_OF_LABEL, Manifest

LEAVE_TIMEOUT_S = 8.0
ALL_JOBS = f"{PART_OF_LABEL}=hvkf"


def made_up_owner() -> str:
    """Name this process as an owner, where no flow run does."""
    return f"{socket.gethostname()[:30]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def lease_until(cluster: Cluster) -> str:
    """Write the end of a lease that begins now, by the API server's clock."""
    end_s = cluster.now() + cluster.settings.lease_s
    return datetime.fromtimestamp(end_s, UTC).isoformat(timespec="seconds")


def own(manifest: Manifest, owner: str, cluster: Cluster) -> None:
    """Write the first owner into a manifest."""
    manifest["metadata"]["annotations"][OWNER_PREFIX + owner] = lease_until(cluster)


def live_owners(job: Manifest, now_s: float) -> list[str]:
    """List the owners whose leases have not ended."""
    now = datetime.fromtimestamp(now_s, UTC)
    return [owner for owner, until in owners_of(job).items() if datetime.fromisoformat(until) > now]


class Lease:
    """Keeps a job for an owner, in a thread of its own, until it is ended. A context manager."""

    def __init__(self, cluster: Cluster, job: str, owner: str) -> None:
        self._cluster = cluster
        self._job = job
        self._owner = owner
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {job}", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5.0)

    def check(self) -> None:
        """Raise the error that ended the renewing, if one did: the job would be reaped unheard."""
        if self._error is not None:
            words = f"{type(self._error).__name__}: {self._error}"
            raise HvkfError(f"The lease of {self._job} is no longer renewed ({words}).")

    def _run(self) -> None:
        try:
            self._renew()
        except BaseException as error:  # `check` raises it where it is heard
            self._error = error

    def _renew(self) -> None:
        period_s = self._cluster.settings.lease_s / 3
        wait_s = period_s
        while not self._ended.wait(wait_s):
            try:
                self._cluster.set_owner(self._job, self._owner, lease_until(self._cluster))
                wait_s = period_s
            except NotFound:
                return
            except HvkfError:
                wait_s = min(5.0, period_s)  # the waiting task's watches say what is wrong


def leave(cluster: Cluster, name: str, owner: str) -> bool:
    """Stop owning a job, and delete it when no other owner keeps it; say whether it was.

    Raises:
        HvkfError: the API refused it or stayed away; the reaper deletes the job after the lease.
    """

    def attempt() -> bool | None:
        try:
            job: Manifest = cluster.set_owner(name, owner, None)
            others = [other for other in live_owners(job, cluster.now()) if other != owner]
            if others or finished(job) or is_deleted(job):
                return False
            cluster.delete_job(job)
        except NotFound:
            return False
        except Changed:
            return None  # another owner may have come
        return True

    while (was_deleted := cluster.ride_out(attempt, LEAVE_TIMEOUT_S)) is None:
        pass
    return bool(was_deleted)


def end_job(cluster: Cluster, name: str) -> None:
    """Delete a job whoever owns it: it serves none of them any more.

    Raises:
        HvkfError: the API refused it or stayed away.
    """

    def attempt() -> bool:
        try:
            job = cluster.get_job(name)
            if not is_deleted(job):
                cluster.delete_job(job)
        except NotFound:
            return True
        except Changed:
            return False  # an owner renewed its lease between the two
        return True

    while not cluster.ride_out(attempt):
        pass


def release(cluster: Cluster, owner: str) -> Iterator[str]:
    """Leave all jobs that a run owns, and yield the names of those that were deleted."""
    jobs, _ = cluster.ride_out(lambda: cluster.list("job", ALL_JOBS), LEAVE_TIMEOUT_S)
    for job in jobs:
        name = job["metadata"]["name"]
        if owner in owners_of(job) and leave(cluster, name, owner):
            yield name


def reap(cluster: Cluster) -> Iterator[str]:
    """Delete unfinished jobs whose leases have all ended, and yield their names."""
    jobs, _ = cluster.ride_out(lambda: cluster.list("job", ALL_JOBS))
    for job in jobs:
        if finished(job) or is_deleted(job) or live_owners(job, cluster.now()):
            continue
        try:
            cluster.delete_job(job)
        except (Changed, NotFound):
            continue  # an owner renewed, or it is gone: as it should be
        yield job["metadata"]["name"]
