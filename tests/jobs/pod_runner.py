"""Runs pods as a scheduler and a kubelet do: their containers are processes of this machine."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from tests.jobs.cluster_objects import Entry, Object, Objects, condition, set_condition

CONTAINER = "main"
NODE = "node0"
OOM_CODE = 137
MESSAGE_BYTES = 2048


class Container(Protocol):
    """A running container."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


# Starts a pod's container; is given who takes its lines, and who hears of its end.
Launch = Callable[[Object, Callable[[str], None], Callable[[int], None]], Container]
Later = Callable[[float, Callable[[], None]], Callable[[], None]]


class Delays(NamedTuple):
    """How long a pod's steps take, in seconds."""

    schedule_s: float = 0.02
    prepare_s: float = 0.02
    start_s: float = 0.5
    finish_s: float = 1.2  # from a container's end to the pod's
    remove_s: float = 0.5


class PodRunner:
    """One node, whose pods run when it has their image and enough GPUs."""

    def __init__(self, objects: Objects, later: Later, launch: Launch) -> None:
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.missing_images: dict[str, tuple[str, str]] = {}
        self.num_gpus = 1000
        self.delays: Callable[[Object], Delays] = lambda pod: Delays()
        self.running: dict[str, Container] = {}
        self._objects = objects
        self._later = later
        self._launch = launch
        self.out_of_memory: set[str] = set()
        self._let_go: set[str] = set()  # the node is done with them
        objects.listeners.append(self._heed)

    def create(self, pod: Object) -> None:
        """Take in a new pod."""
        made = self._objects.create("pods", copy.deepcopy(pod))
        pod["metadata"] = copy.deepcopy(made["metadata"])
        name = made["metadata"]["name"]
        self._later(self.delays(made).schedule_s, lambda: self._schedule(name))

    def delete(self, name: str) -> None:
        """Tell a pod to end, in its grace period; it is removed when it has."""
        pod = self._objects.get("pods", name)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        grace_s = pod["spec"].get("terminationGracePeriodSeconds", 30)

        def mutate(seen: Object) -> None:
            seen["metadata"]["deletionTimestamp"] = self._objects.time()
            seen["metadata"]["deletionGracePeriodSeconds"] = grace_s

        pod = self._objects.change("pods", name, mutate)
        if not _is_scheduled(pod) or has_finished(pod):
            self._let(name)
        elif (container := self.running.get(name)) is not None:
            self._objects.tell(pod, "Normal", "Killing", f"Stopping container {CONTAINER}")
            container.terminate()
            self._later(grace_s, lambda: self._kill(name))
        elif not _state(pod).get("terminated"):
            self._later(0.02, lambda: self._give_up(name))

    def evict(self, name: str, reason: str = "EvictionByEvictionAPI") -> None:
        """Disrupt a pod, as a drained node does."""

        def mutate(pod: Object) -> None:
            set_condition(pod, "DisruptionTarget", "True", reason=reason)

        self._objects.change("pods", name, mutate)
        self.delete(name)

    def run_out_of_memory(self, name: str) -> None:
        """Kill a container as the kernel does one that uses too much."""
        self.out_of_memory.add(name)
        self.running[name].kill()

    def tell_state(self, name: str, state: Object) -> None:
        """Say of a pod that does not run in which state its container is."""
        self._set(name, state, ready=False, reason="ContainersNotReady")

    def _heed(self, entry: Entry) -> None:
        name = entry.object["metadata"]["name"]
        if entry.kind == "pods" and entry.action == "MODIFIED" and name in self._let_go:
            self._later(0.0, lambda: self._remove(name))

    def _live(self, name: str) -> Object | None:
        pod = self._objects.get("pods", name)
        return None if pod is None or pod["metadata"].get("deletionTimestamp") else pod

    def _schedule(self, name: str) -> None:
        pod = self._live(name)
        if pod is None:
            return
        if (lacking := self._lacking(pod)) is not None:

            def refuse(seen: Object) -> None:
                more = {"reason": "Unschedulable", "message": lacking or ""}
                set_condition(seen, "PodScheduled", "False", **more)

            before = pod
            if self._objects.change("pods", name, refuse) != before:
                self._objects.tell(pod, "Warning", "FailedScheduling", lacking)
            self._later(5.0, lambda: self._schedule(name))
            return

        def place(seen: Object) -> None:
            set_condition(seen, "PodScheduled", "True")
            seen["spec"]["nodeName"] = NODE

        pod = self._objects.change("pods", name, place)
        where = f"{pod['metadata']['namespace']}/{name}"
        message = f"Successfully assigned {where} to {NODE}"
        self._objects.tell(pod, "Normal", "Scheduled", message)
        self._later(self.delays(pod).prepare_s, lambda: self._prepare(name))

    def _lacking(self, pod: Object) -> str | None:
        """Say as the scheduler does why no node takes a pod."""
        taken = [other for other in self._objects.all("pods") if _is_scheduled(other)]
        used = sum(num_gpus(other) for other in taken if not has_finished(other))
        if num_gpus(pod) and used + num_gpus(pod) > self.num_gpus:
            return (
                "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to "
                "deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful "
                "for scheduling."
            )
        return None

    def _prepare(self, name: str) -> None:
        if (pod := self._live(name)) is None:
            return
        waiting = {"waiting": {"reason": "ContainerCreating"}}
        self._set(name, waiting, ready=False, reason="ContainersNotReady")
        self._later(self.delays(pod).start_s, lambda: self._start(name))

    def _start(self, name: str) -> None:
        if (pod := self._live(name)) is None:
            return
        image = pod["spec"]["containers"][0]["image"]
        if image in self.missing_images:
            reason, message = self.missing_images[image]
            self._objects.tell(pod, "Warning", reason, message)
            self._objects.tell(pod, "Warning", "Failed", f"Error: {reason}")
            waiting = {"waiting": {"reason": reason, "message": message}}
            self._set(name, waiting, ready=False, reason="ContainersNotReady")
            return
        present = f'Container image "{image}" already present on machine and can be accessed'
        self._objects.tell(pod, "Normal", "Pulled", f"{present} by the pod")
        self.logs[name] = []
        self.running[name] = self._launch(
            pod, lambda line: self._say(name, line), lambda code: self._end(name, code)
        )
        self._objects.tell(pod, "Normal", "Created", "Container created")
        self._objects.tell(pod, "Normal", "Started", "Container started")
        self._set(name, {"running": {"startedAt": self._objects.time()}}, phase="Running")

    def _say(self, name: str, line: str) -> None:
        # By this machine's clock, which clients ask by, and not the cluster's faster one.
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0")
        self.logs[name].append((f"{moment}Z", line))

    def _end(self, name: str, code: int) -> None:
        """Tell that a container has ended; its pod ends a while later, or at once when deleted."""
        self.running.pop(name, None)
        pod = self._objects.get("pods", name)
        if pod is None:
            return
        reason = "Completed" if code == 0 else "Error"
        if name in self.out_of_memory:
            reason, code = "OOMKilled", OOM_CODE
        state: Object = {"exitCode": code, "reason": reason, "finishedAt": self._objects.time()}
        policy = pod["spec"]["containers"][0].get("terminationMessagePolicy")
        if code and policy == "FallbackToLogsOnError":
            text = "".join(f"{line}\n" for _, line in self.logs[name])
            state["message"] = text[-MESSAGE_BYTES:]
        phase = "Failed" if code else "Succeeded"
        if pod["metadata"].get("deletionTimestamp"):
            self._set(name, {"terminated": state}, ready=False, phase=phase, reason="PodFailed")
            self._later(self.delays(pod).remove_s, lambda: self._let(name))
            return
        self._set(name, {"terminated": state}, ready=False, reason="PodCompleted")
        self._later(self.delays(pod).finish_s, lambda: self._finish(name, phase))

    def _finish(self, name: str, phase: str) -> None:
        pod = self._objects.get("pods", name)
        if pod is None:
            return
        self._set(name, _state(pod), ready=False, phase=phase, reason="PodCompleted")
        if pod["metadata"].get("deletionTimestamp"):
            self._let(name)

    def _give_up(self, name: str) -> None:
        """End a deleted pod whose container never ran."""
        pod = self._objects.get("pods", name)
        if pod is None:
            return
        waiting = {"waiting": {"reason": "ContainerCreating"}}
        self._set(name, waiting, ready=False, reason="ContainersNotReady")
        state = {"exitCode": OOM_CODE, "reason": "ContainerStatusUnknown"}
        state["finishedAt"] = self._objects.time()
        self._later(0.8, lambda: self._fail(name, state))

    def _fail(self, name: str, state: Object) -> None:
        if self._objects.get("pods", name) is None:
            return
        self._set(name, {"terminated": state}, ready=False, phase="Failed", reason="PodFailed")
        self._let(name)

    def _kill(self, name: str) -> None:
        if name in self.running:
            self.running[name].kill()

    def _let(self, name: str) -> None:
        self._let_go.add(name)
        self._later(0.0, lambda: self._remove(name))

    def _remove(self, name: str) -> None:
        pod = self._objects.get("pods", name)
        if pod is None or not pod["metadata"].get("deletionTimestamp"):
            return
        if not pod["metadata"].get("finalizers"):
            self._objects.remove("pods", name)

    def _set(
        self,
        name: str,
        state: Object,
        *,
        ready: bool = True,
        phase: str | None = None,
        reason: str = "",
    ) -> None:
        def mutate(pod: Object) -> None:
            more = {"reason": reason} if reason else {}
            set_condition(pod, "Initialized", "True")
            for kind in ("Ready", "ContainersReady"):
                set_condition(pod, kind, "True" if ready else "False", **more)
            pod["status"]["phase"] = phase or pod["status"]["phase"]
            name_of = pod["spec"]["containers"][0]["name"]
            status = {"name": name_of, "ready": ready, "restartCount": 0, "state": state}
            pod["status"]["containerStatuses"] = [status]

        self._objects.change("pods", name, mutate)


def num_gpus(pod: Object) -> int:
    """Count the GPUs that a pod asks for."""
    limits = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return int(limits.get("nvidia.com/gpu", 0))


def _is_scheduled(pod: Object) -> bool:
    scheduled = condition(pod, "PodScheduled")
    return scheduled is not None and scheduled["status"] == "True"


def has_finished(pod: Object) -> bool:
    """Whether a pod has ended."""
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def _state(pod: Object) -> dict[str, Any]:
    statuses = pod["status"].get("containerStatuses")
    state: dict[str, Any] = statuses[0]["state"] if statuses else {}
    return state
