"""What the job controller sees of a job and its pods at one moment, and what follows from it."""

from datetime import UTC, datetime

from hvkf.jobs.manifest import MAX_PARTS, read_numbers
from tests.jobs.cluster_objects import Object, condition, set_condition

BACKOFF_S = 10.0
TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
MESSAGES = {
    "BackoffLimitExceeded": "Job has reached the specified backoff limit",
    "CompletionsReached": "Reached expected number of succeeded pods",
    "DeadlineExceeded": "Job was active longer than specified deadline",
    "FailedIndexes": "Job has failed indexes",
    "MaxFailedIndexesExceeded": "Job has exceeded the specified maximal number of failed indexes",
}


class Look:
    """What the controller sees of a job at one moment, and what follows from it."""

    def __init__(self, job: Object, pods: list[Object], now_s: float) -> None:
        self.job = job
        self.spec = job["spec"]
        self.created: list[Object] = []
        self.active = [pod for pod in pods if is_active(pod)]
        self._pods = pods
        self._now_s = now_s
        self.started_s = _seconds(job["status"].get("startTime")) or now_s
        self.is_per_index = self.spec.get("backoffLimitPerIndex") is not None
        tracked = [pod for pod in pods if TRACKING in pod["metadata"].get("finalizers", ())]
        failed = [pod for pod in tracked if self._has_failed(pod)]
        self.succeeded_now = [pod for pod in tracked if pod["status"]["phase"] == "Succeeded"]
        self.ignored = [pod for pod in failed if self._action(pod) == "Ignore"]
        self._counting = [pod for pod in failed if pod not in self.ignored]
        self.completed = set(_numbers(job["status"].get("completedIndexes")))
        self.completed |= {index_of(pod) for pod in self.succeeded_now}
        self.failed_indexes = set(_numbers(job["status"].get("failedIndexes")))
        self.failed_indexes |= self._fail_indexes()
        self.ends_as, self.message = self._end()
        self.counted = self._count()

    @property
    def num_held(self) -> int:
        """Count pods that end, whose places are held until they have."""
        return self.num_terminating() if self.spec.get("podReplacementPolicy") == "Failed" else 0

    def num_terminating(self) -> int:
        """Count pods that are told to end and have not."""
        going = [pod for pod in self._pods if not _has_finished(pod) and not is_active(pod)]
        if self.ends_as not in ("", "FailedIndexes", "CompletionsReached"):
            return len(going) + len(self.active)
        return len(going)

    def wanted(self) -> list[int]:
        """List the indexes that lack a pod."""
        busy = {index_of(pod) for pod in self.active}
        if self.spec.get("podReplacementPolicy") == "Failed":
            busy |= {index_of(pod) for pod in self._pods if not _has_finished(pod)}
        done = self.completed | self.failed_indexes | busy
        return [index for index in range(int(self.spec["completions"])) if index not in done]

    def failures_of(self, index: int) -> int:
        """Count how often an index has failed, as its next pod is told."""
        if not self.is_per_index:
            return 0
        ends = [pod for pod in self._failed_pods(index) if self._action(pod) != "Ignore"]
        return max((_earlier_failures(pod) + 1 for pod in ends), default=0)

    def backoff_left_s(self, index: int) -> float:
        """Say how long an index still waits after its last failure."""
        ends = self._failed_pods(index)
        if not ends:
            return 0.0
        last_s = max(_ended_s(pod) for pod in ends)
        return last_s + BACKOFF_S * 2.0 ** (len(ends) - 1) - self._now_s

    def first_status(self, job: Object) -> None:
        """Write what is seen, with pods that are not counted yet."""
        status = job["status"]
        ends = self.ends_as not in ("", "FailedIndexes", "CompletionsReached")
        active = [] if ends else [*self.active, *self.created]
        _set(status, "active", len(active))
        _set(status, "succeeded", len(self.completed))
        _set(status, "completedIndexes", write_indexes(self.completed))
        if self.is_per_index:
            status["failedIndexes"] = write_indexes(self.failed_indexes)
        status["ready"] = sum(_is_ready(pod) for pod in active)
        status["terminating"] = self.num_terminating()
        uids = [pod["metadata"]["uid"] for pod in self.counted]
        status["uncountedTerminatedPods"] = {"failed": uids} if uids else {}
        status.setdefault("startTime", _stamp(self._now_s))
        if condition(job, "Suspended") is not None:
            message = {"reason": "JobResumed", "message": "Job resumed"}
            set_condition(job, "Suspended", "False", **message)
        if self.ends_as:
            kind = "FailureTarget"
            if self.ends_as == "CompletionsReached":
                kind = "SuccessCriteriaMet"
            set_condition(job, kind, "True", reason=self.ends_as, message=self.message)

    def second_status(self, job: Object) -> None:
        """Count the pods that were not counted."""
        status = job["status"]
        status["failed"] = status.get("failed", 0) + len(self.counted)
        status["uncountedTerminatedPods"] = {}

    def end(self, job: Object, kind: str) -> None:
        """Write that the job has ended."""
        set_condition(job, kind, "True", reason=self.ends_as, message=self.message)

    def _has_failed(self, pod: Object) -> bool:
        """Whether a pod counts as failed; where pods are replaced at once, a deleted one does."""
        if pod["status"]["phase"] != "Failed" and self.spec.get("podReplacementPolicy") != "Failed":
            return not _has_finished(pod) and "deletionTimestamp" in pod["metadata"]
        return bool(pod["status"]["phase"] == "Failed")

    def _failed_pods(self, index: int) -> list[Object]:
        pods = [pod for pod in self._pods if pod["status"]["phase"] == "Failed"]
        return [pod for pod in pods if index_of(pod) == index]

    def _count(self) -> list[Object]:
        """Choose the failed pods to count: those of an index count once it has its next pod."""
        if self.ends_as and self.ends_as not in ("FailedIndexes", "CompletionsReached"):
            if self.spec.get("podReplacementPolicy") == "Failed":
                return self._counting
            return [*self._counting, *self.active]
        if not self.is_per_index:
            return self._counting
        newest = dict.fromkeys(range(int(self.spec["completions"])), 0)
        for pod in self._pods:
            newest[index_of(pod)] = max(newest[index_of(pod)], _earlier_failures(pod))
        return [
            pod
            for pod in self._counting
            if index_of(pod) in self.failed_indexes
            or _earlier_failures(pod) < newest[index_of(pod)]
        ]

    def _action(self, pod: Object) -> str:
        """Say what the job's failure policy does about a failed pod."""
        states = [each["state"] for each in pod["status"].get("containerStatuses", ())]
        codes = [state["terminated"]["exitCode"] for state in states if "terminated" in state]
        for rule in (self.spec.get("podFailurePolicy") or {}).get("rules", ()):
            wanted = rule.get("onExitCodes", {}).get("values", ())
            kinds = [entry["type"] for entry in rule.get("onPodConditions", ())]
            is_met = any(code in wanted for code in codes)
            is_met = is_met or any(condition(pod, kind) is not None for kind in kinds)
            if is_met:
                return str(rule["action"])
        return "Count"

    def _fail_indexes(self) -> set[int]:
        if not self.is_per_index:
            return set()
        limit = int(self.spec["backoffLimitPerIndex"])
        return {
            index_of(pod)
            for pod in self._counting
            if self._action(pod) == "FailIndex" or _earlier_failures(pod) >= limit
        }

    def _end(self) -> tuple[str, str]:
        known = condition(self.job, "FailureTarget")
        if known is not None:
            return known["reason"], known["message"]
        deadline_s = self.spec.get("activeDeadlineSeconds")
        if deadline_s is not None and self._now_s >= self.started_s + deadline_s:
            return "DeadlineExceeded", MESSAGES["DeadlineExceeded"]
        for pod in self._counting:
            if self._action(pod) == "FailJob":
                name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
                state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
                return "PodFailurePolicy", (
                    f"Container main for pod {namespace}/{name} failed with exit code "
                    f"{state['exitCode']} matching FailJob rule at index 0"
                )
        num_failed = self.job["status"].get("failed", 0) + len(self._counting)
        if not self.is_per_index and num_failed > self.spec.get("backoffLimit", 6):
            return "BackoffLimitExceeded", MESSAGES["BackoffLimitExceeded"]
        most = self.spec.get("maxFailedIndexes")
        if most is not None and len(self.failed_indexes) > most:
            return "MaxFailedIndexesExceeded", MESSAGES["MaxFailedIndexesExceeded"]
        if len(self.completed | self.failed_indexes) < int(self.spec["completions"]):
            return "", ""
        reason = "FailedIndexes" if self.failed_indexes else "CompletionsReached"
        return reason, MESSAGES[reason]


def write_indexes(indexes: set[int]) -> str:
    """Write indexes as Kubernetes does, to whom two neighbours are no range: 0,1,3-5."""
    ranges: list[list[int]] = []
    for index in sorted(indexes):
        if ranges and index == ranges[-1][-1] + 1:
            ranges[-1].append(index)
        else:
            ranges.append([index])
    texts = [f"{r[0]}-{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in ranges]
    return ",".join(texts)


def index_of(pod: Object) -> int:
    """Return a pod's completion index."""
    return int(pod["metadata"]["annotations"][INDEX])


def _earlier_failures(pod: Object) -> int:
    return int(pod["metadata"]["annotations"].get(FAILURES, "0"))


def _has_finished(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Whether a pod neither has ended nor was told to."""
    return not _has_finished(pod) and not pod["metadata"].get("deletionTimestamp")


def _is_ready(pod: Object) -> bool:
    ready = condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def _numbers(text: str | None) -> list[int]:
    return read_numbers(text, range(MAX_PARTS)) if text else []


def _set(status: Object, name: str, value: object) -> None:
    """Set a field, or leave it out when it says nothing."""
    if value:
        status[name] = value
    else:
        status.pop(name, None)


def _ended_s(pod: Object) -> float:
    states = [each["state"] for each in pod["status"].get("containerStatuses", ())]
    ends = [state["terminated"]["finishedAt"] for state in states if "terminated" in state]
    return _seconds(ends[0]) or 0.0 if ends else 0.0


def _seconds(stamp: str | None) -> float | None:
    return None if stamp is None else datetime.fromisoformat(stamp).timestamp()


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
