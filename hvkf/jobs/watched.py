"""What the cluster last said of one work: its jobs, their pods, events, and what the pods said."""

import queue
import time
from collections.abc import Callable, Sequence

from hvkf.jobs import cluster_state as said
from hvkf.jobs.feed import REPLACED, Feed, Message
from hvkf.jobs.manifest import Manifest
from hvkf.jobs.pod_logs import PodLog
from hvkf.jobs.spec import Listener
from hvkf.progress import parse_line

TICK_S = 0.5
# Of a pod that ran before this waited for it: what it said before was told to its first owner.
ADOPTED_LINES = 100


class Watched:
    """Takes what the feed has, and passes on what the pods of the current job say.

    `jobs` and `pods` are by name; `on_pod` hears of each pod whenever something is said of it.
    """

    def __init__(self, feed: Feed, listener: Listener, on_pod: Callable[[Manifest], None]) -> None:
        self.jobs: dict[str, Manifest] = {}
        self.pods: dict[str, Manifest] = {}
        self.events: list[Manifest] = []
        self.logs: dict[str, PodLog] = {}
        self.job_name = ""
        self.is_gang = False
        self._feed = feed
        self._listener = listener
        self._on_pod = on_pod
        self._adopted_pods: set[str] = set()
        self._unready_since_s: dict[str, float] = {}

    def adopt_pods(self) -> None:
        """Take note that others were told what the pods have said until now."""
        self._adopted_pods |= {pod for pod, seen in self.pods.items() if said.has_started(seen)}

    def begin(self, job_name: str) -> None:
        """Pass on what the pods of this job say."""
        self.job_name = job_name
        self._follow_logs()

    def pods_of_job(self) -> list[Manifest]:
        """Return the job's pods, the oldest first."""
        pods = [pod for pod in self.pods.values() if said.job_of(pod) == self.job_name]
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def has_heard_all(self) -> bool:
        """Whether the job's pods are seen to have ended, and their logs are read to the end.

        The watch of jobs may be ahead of that of pods.
        """
        pods = self.pods_of_job()
        logs = [self.logs.get(pod["metadata"]["name"]) for pod in pods]
        heard = all(log is not None and log.has_ended for log in logs)
        return bool(pods) and heard and all(said.has_ended(pod) for pod in pods)

    def take_all(self) -> None:
        """Take what the feed has by now; waits for nothing."""
        while not self._feed.messages.empty():
            self.take(TICK_S)

    def take(self, timeout_s: float) -> None:
        """Take what the feed has; waits for one message at most."""
        try:
            self._handle(self._feed.messages.get(timeout=timeout_s))
            while True:
                self._handle(self._feed.messages.get_nowait())
        except queue.Empty:
            return

    def _handle(self, message: Message) -> None:
        if message.kind == "fault":
            raise message.value
        if message.kind.startswith("log"):
            self._handle_log(message)
        elif message.kind == "event":
            self.events += message.value if message.action == REPLACED else [message.value]
        elif message.kind == "job":
            _change(self.jobs, message, is_kept=False)
        else:
            is_kept = message.action != REPLACED and said.has_ended(message.value)
            for pod in _change(self.pods, message, is_kept=is_kept):
                self._on_pod(pod)
        self._follow_logs()

    def _follow_logs(self) -> None:
        for name, pod in self.pods.items():
            if (
                said.has_started(pod)
                and name not in self.logs
                and said.job_of(pod) == self.job_name
            ):
                self.logs[name] = PodLog()
                self._feed.follow(name, ADOPTED_LINES if name in self._adopted_pods else None)

    def _handle_log(self, message: Message) -> None:
        pod, log = message.action, self.logs[message.action]
        if message.kind == "log-lost":
            log.lose()
        elif message.kind == "log-open":
            log.open()
        elif message.kind == "log":
            self._hear(pod, log, message.value)
        elif message.value and not self._has_stopped(pod):
            self._feed.follow(pod)  # only the stream has ended: nodes rotate logs
        else:
            log.end()

    def _has_stopped(self, pod: str) -> bool:
        seen = self.pods.get(pod)
        return seen is None or said.has_stopped(seen)

    def _hear(self, pod: str, log: PodLog, line: str) -> None:
        if (event := parse_line(line)) is None:
            log.hear(line, self._listener)
            return
        log.hear_progress()
        index = said.index_of(self.pods[pod]) if pod in self.pods else 0
        if not self.is_gang or index == 0:  # its members take the same steps
            self._listener.on_progress(index, event)

    def silence_s(self, pod: Manifest) -> float:
        """Return since when a pod is silent, or its node no longer says that it is ready.

        The log of a lost node cannot be read, which alone proves nothing.
        """
        name, now_s = pod["metadata"]["name"], time.monotonic()
        if said.is_ready(pod):
            self._unready_since_s.pop(name, None)
            lost_s = 0.0
        else:
            lost_s = now_s - self._unready_since_s.setdefault(name, now_s)
        return max(lost_s, self.logs[name].silence_s() if name in self.logs else 0.0)

    def running_pods(self) -> list[str]:
        """Name the pods, of any attempt, that have not ended."""
        return [name for name, pod in self.pods.items() if not said.has_ended(pod)]


def _change(seen: dict[str, Manifest], message: Message, *, is_kept: bool) -> Sequence[Manifest]:
    """Take objects into what was seen; a deleted one stays if it is kept. Returns those it has."""
    if message.action == REPLACED:
        seen.clear()
        seen.update({found["metadata"]["name"]: found for found in message.value})
        return list(seen.values())
    name = message.value["metadata"]["name"]
    if message.action == "DELETED" and not is_kept:
        seen.pop(name, None)
        return []
    seen[name] = message.value
    return [message.value]
