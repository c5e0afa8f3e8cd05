"""A cluster of one namespace and one node: its objects, its controller and its node together."""

import asyncio
from collections.abc import Callable

from tests.jobs.cluster_objects import Object, Objects
from tests.jobs.job_controller import JOB_NAME, Hands, JobController, Refused
from tests.jobs.pod_runner import Launch, PodRunner, has_finished, num_gpus

NAMESPACE = "hvkf"
FOREGROUND = "foregroundDeletion"


class SmallCluster:
    """Runs in one event loop, whose thread alone may touch it.

    A second of this cluster takes `pace` seconds, so that tests need not wait as long as people.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, launch: Launch, pace: float, epoch_s: float
    ) -> None:
        self._loop = loop
        self._pace = pace
        self._epoch_s, self._began_s = epoch_s, loop.time()
        self.gpu_quota: int | None = None
        self.objects = Objects(self.now)
        self.pods = PodRunner(self.objects, self.later, launch)
        hands = Hands(self.later, self.now, self._create_pod, self.pods.delete)
        self.jobs = JobController(self.objects, hands)
        self.objects.listeners.append(lambda entry: self._collect(entry.kind))

    def now(self) -> float:
        """Return the cluster's time, in its seconds since 1970."""
        return self._epoch_s + (self._loop.time() - self._began_s) / self._pace

    def later(self, delay_s: float, what: Callable[[], None]) -> Callable[[], None]:
        """Do something later; return how to call it off."""
        return self._loop.call_later(delay_s * self._pace, what).cancel

    def create_job(self, job: Object) -> Object:
        """Add a job, with what a server fills in."""
        metadata, spec = job["metadata"], job["spec"]
        metadata.setdefault("namespace", NAMESPACE)
        metadata["generation"] = 1
        job["status"] = {}
        spec.setdefault("suspend", False)
        spec.setdefault("parallelism", 1)
        spec.setdefault("completions", 1)
        spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
        spec.setdefault("template", {}).setdefault("metadata", {})
        return self.objects.create("jobs", job)

    def delete_job(self, name: str) -> None:
        """Delete a job in the foreground: it goes when its pods are gone."""

        def mutate(job: Object) -> None:
            job["metadata"]["deletionTimestamp"] = self.objects.time()
            job["metadata"]["finalizers"] = [FOREGROUND]

        self.objects.change("jobs", name, mutate)
        for pod in self.jobs.pods_of(name):
            self._orphan(pod["metadata"]["name"])
            self.pods.delete(pod["metadata"]["name"])
        self._collect("pods")

    def _orphan(self, name: str) -> None:
        def mutate(pod: Object) -> None:
            pod["metadata"]["finalizers"] = []

        self.objects.change("pods", name, mutate)

    def _collect(self, kind: str) -> None:
        """Remove deleted jobs without pods."""
        if kind != "pods":
            return
        left = {pod["metadata"]["labels"].get(JOB_NAME) for pod in self.objects.all("pods")}
        for job in self.objects.all("jobs"):
            name = job["metadata"]["name"]
            if job["metadata"].get("deletionTimestamp") and name not in left:
                self.objects.remove("jobs", name)

    def _create_pod(self, pod: Object) -> None:
        """Admit a pod, or refuse one that exceeds the quota."""
        counted = [pod for pod in self.objects.all("pods") if not has_finished(pod)]
        used = sum(num_gpus(other) for other in counted)
        if self.gpu_quota is not None and used + num_gpus(pod) > self.gpu_quota:
            raise Refused(
                f'pods "{pod["metadata"]["name"]}" is forbidden: exceeded quota: q, requested: '
                f"requests.nvidia.com/gpu={num_gpus(pod)}, used: requests.nvidia.com/gpu={used}, "
                f"limited: requests.nvidia.com/gpu={self.gpu_quota}"
            )
        self.pods.create(pod)
