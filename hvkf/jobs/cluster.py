"""The Kubernetes executor: jobs are created or adopted, watched to their end, and told in words."""

import queue
import time
from collections.abc import Callable
from contextlib import closing

from hvkf.errors import AlreadyExists, BadInput, HvkfError, TryAgain
from hvkf.jobs import cluster_state as said
from hvkf.jobs.attempts import Incomplete, further_starts, is_done, severity
from hvkf.jobs.feed import REPLACED, Feed, Message
from hvkf.jobs.kubernetes import Cluster
from hvkf.jobs.kubernetes_faults import NotFound
from hvkf.jobs.manifest import ATTEMPT_LABEL, WORK_LABEL, Manifest, build_manifest
from hvkf.jobs.owners import Lease, end_job, lease_until, leave, made_up_owner, own
from hvkf.jobs.pod_logs import PodLog
from hvkf.jobs.spec import JobSpec, Listener, job_for
from hvkf.jobs.turns import IN_TURNS, Turns
from hvkf.ledger import pending_parts
from hvkf.progress import parse_line
from hvkf.records import Plan
from hvkf.storage import Store

TICK_S = 0.5
LAST_LOGS_S = 5.0
SHOWN_ENDS = 5
# Of a pod that ran before this waited for it: what it said before was told to its first owner.
ADOPTED_LINES = 100


def run_plan(
    plan: Plan,
    store: Store,
    listener: Listener,
    owner: str | None = None,
    moves: Callable[[], bool] = lambda: False,
) -> None:
    """Run a plan's parts as pods until the ledger has them all.

    Whoever asks for the same work shares its job. When this is interrupted or the job cannot go
    on, the job is deleted unless another owner keeps it, or this one goes on elsewhere (`moves`).

    Raises:
        HvkfError: the fault that ended the job.
    """
    if not (parts := pending_parts(store, plan)):
        return
    turns = Turns(plan)
    job = job_for(plan, store.url, turns.next(parts), attempt=1)
    build_manifest(job)  # what is wrong with the settings is known before anything is asked
    selector = f"{WORK_LABEL}={job.work}"
    with closing(Cluster(job.cluster)) as cluster, Feed(cluster, selector) as feed:
        task = WaitingTask(cluster, feed, listener, owner or made_up_owner(), moves)
        failures = 0
        while parts := turns.next(before := pending_parts(store, plan)):
            job = job_for(plan, store.url, parts, attempt=1)
            fault = task.run(job)
            left = pending_parts(store, plan)
            if fault is None and is_done(plan, before, left):
                failures = 0
                continue
            failures += 1
            fault = fault or Incomplete(f"{job.stage}: a job ended without doing all its parts.")
            if failures <= further_starts(job, fault):
                listener.on_log(
                    f"{job.stage}: attempt {task.attempt} ended: {fault} Starting again."
                )
            elif plan.stage not in IN_TURNS:
                raise fault
            else:
                turns.give_up(parts, left, fault)
                failures = 0
    turns.finish()


class WaitingTask:
    """Waits for one work's jobs; holds what the cluster last said of them."""

    def __init__(
        self,
        cluster: Cluster,
        feed: Feed,
        listener: Listener,
        owner: str,
        moves: Callable[[], bool],
    ) -> None:
        self.attempt = 0
        self._cluster = cluster
        self._feed = feed
        self._listener = listener
        self._owner = owner
        self._moves = moves
        self._seen: dict[str, dict[str, Manifest]] = {"job": {}, "pod": {}}
        self._events: list[Manifest] = []
        self._logs: dict[str, PodLog] = {}
        self._told: set[str] = set()
        self._detailed: set[str] = set()
        self._given_up: set[str] = set()  # uids of jobs that this has ended
        self._adopted_pods: set[str] = set()
        self._unready_since_s: dict[str, float] = {}
        self._is_gang = False
        self._name = ""

    def run(self, job: JobSpec) -> HvkfError | None:
        """Create or adopt a job, wait for its end, and return the fault it ended by."""
        self._is_gang = job.is_gang
        try:
            self._find_or_create(job)
            with Lease(self._cluster, self._name, self._owner) as lease:
                return self._wait(job, lease)
        except BaseException:  # also a stop: this run wants the job no more
            self._leave()
            raise

    def _leave(self) -> None:
        if not self._name:
            return
        if self._moves():
            self._listener.on_log(f"{self._name} goes on: this run waits for it elsewhere")
            return
        try:
            if leave(self._cluster, self._name, self._owner):
                self._listener.on_log(f"{self._name}: deleted; its pods save their work and end")
        except HvkfError as fault:
            self._listener.on_log(
                f"{self._name} could not be deleted ({fault}); `hvkf jobs reap` does so when its "
                "lease has ended"
            )

    def _find_or_create(self, job: JobSpec) -> None:
        self._name = ""
        deadline_s = time.monotonic() + job.jobs.grace_s + job.jobs.start_timeout_s
        while True:
            self._take_all()
            live = [
                seen
                for seen in self._seen["job"].values()
                if not said.finished(seen)
                and not said.is_deleted(seen)
                and seen["metadata"]["uid"] not in self._given_up
            ]
            if live:
                newest = max(live, key=said.attempt_of)
                if self._adopt(newest):
                    return
                self._seen["job"].pop(newest["metadata"]["name"], None)
            elif job.is_gang and (left := self._running_pods()):
                # Two gangs at once would write the same checkpoints.
                self._tell(f"{job.stage}: waits for {', '.join(left)} of an earlier attempt to end")
                if time.monotonic() > deadline_s:
                    raise TryAgain(
                        f"{', '.join(left)} of an earlier attempt does not end: if its node is "
                        "gone, kubectl delete pod --force it."
                    )
                self._take(TICK_S)
            elif self._create(job):
                return

    def _running_pods(self) -> list[str]:
        return [name for name, pod in self._seen["pod"].items() if not said.has_ended(pod)]

    def _adopt(self, found: Manifest) -> bool:
        name = found["metadata"]["name"]
        try:
            self._cluster.ride_out(
                lambda: self._cluster.set_owner(name, self._owner, lease_until(self._cluster))
            )
        except NotFound:
            return False
        self._adopted_pods |= {
            pod for pod, seen in self._seen["pod"].items() if said.has_started(seen)
        }
        self._begin(name, said.attempt_of(found))
        self._listener.on_log(f"{name} is there already: waiting for it")
        return True

    def _create(self, job: JobSpec) -> bool:
        attempts = [said.attempt_of(seen) for seen in self._seen["job"].values()]
        attempt = max([*attempts, self.attempt]) + 1
        manifest = build_manifest(job.model_copy(update={"attempt": attempt}))
        own(manifest, self._owner, self._cluster)
        name = manifest["metadata"]["name"]
        try:
            created = self._cluster.ride_out(lambda: self._cluster.create_job(manifest))
        except AlreadyExists:  # another flow was first, or the answer to our own was lost
            found = self._cluster.ride_out(lambda: self._cluster.get_job(name))
            self._seen["job"][name] = found
            if not said.finished(found):
                return False  # to be adopted
            self._begin(name, attempt)  # it has done its work since the parts were counted
            return True
        self._seen["job"][name] = created
        assert created["metadata"]["labels"][ATTEMPT_LABEL] == str(attempt)
        self._begin(name, attempt)
        self._listener.on_log(f"{name} is created")
        return True

    def _begin(self, name: str, attempt: int) -> None:
        self._name, self.attempt = name, attempt
        self._follow_logs()

    def _wait(self, job: JobSpec, lease: Lease) -> HvkfError | None:
        waiting_since_s = time.monotonic()
        while True:
            self._take(TICK_S)
            lease.check()
            current = self._seen["job"].get(self._name)
            if current is None or said.is_deleted(current):
                return TryAgain(f"{self._name} was deleted while it ran: run again to go on.")
            if (end := said.finished(current)) is not None:
                return self._conclude(job, *end)
            pods = self._pods()
            if said.is_suspended(current):
                where = f"in {job.jobs.queue}" if job.jobs.queue else "(suspended)"
                self._tell(f"{job.stage}: queued {where}")
                waiting_since_s = time.monotonic()
            blocks = self._blocks(job)
            num_started = sum(said.has_started(pod) for pod in pods)
            needed = job.jobs.nodes if job.is_gang else 1
            if num_started >= needed or current.get("status", {}).get("succeeded"):
                waiting_since_s = time.monotonic()
            elif time.monotonic() - waiting_since_s > job.jobs.start_timeout_s:
                why = "; ".join(blocks) or "the cluster says nothing of why"
                raise BadInput(
                    f"{self._name}: {num_started} of {needed} pods started within "
                    f"{job.jobs.start_timeout_s:g} s: {why}."
                )
            if job.is_gang and (silent := self._silent(job)):
                return self._give_up(job, current, silent)

    def _silent(self, job: JobSpec) -> list[str]:
        """Name the members that are lost, or have said nothing, for too long."""
        return [
            f"member {said.index_of(pod)} ({pod['metadata']['name']})"
            for pod in self._pods()
            if said.has_started(pod)
            and not said.has_stopped(pod)
            and self._silence_s(pod) > job.jobs.stall_s
        ]

    def _silence_s(self, pod: Manifest) -> float:
        """Return since when a pod is silent, or its node no longer says that it is ready.

        The log of a lost node cannot be read, which alone proves nothing.
        """
        name, now_s = pod["metadata"]["name"], time.monotonic()
        if said.is_ready(pod):
            self._unready_since_s.pop(name, None)
            lost_s = 0.0
        else:
            lost_s = now_s - self._unready_since_s.setdefault(name, now_s)
        return max(lost_s, self._logs[name].silence_s() if name in self._logs else 0.0)

    def _give_up(self, job: JobSpec, current: Manifest, silent: list[str]) -> HvkfError:
        """End a gang that stalls, for all its owners: each of them takes part in the next."""
        self._given_up.add(current["metadata"]["uid"])
        end_job(self._cluster, self._name)
        return TryAgain(
            f"{self._name}: {', '.join(silent)} was silent for more than "
            f"jobs.{job.stage}.stall_s={job.jobs.stall_s:g} s."
        )

    def _blocks(self, job: JobSpec) -> list[str]:
        """Tell what blocks the job's pods.

        Raises:
            BadInput: something that no waiting mends.
        """
        found = [said.blocked(pod, job.stage) for pod in self._pods()]
        found += [
            said.blocked_by_event(event, job.stage)
            for event in self._events
            if f"{event['involvedObject']['name']}-".startswith(f"{self._name}-")
        ]
        sentences = []
        for block in found:
            if block is None or block.sentence in sentences:
                continue
            if block.is_final:
                raise BadInput(f"{self._name}: {block.sentence}.")
            sentences.append(block.sentence)
            self._tell(f"{job.stage}: {block.brief}")
            if block.sentence not in self._detailed:
                self._detailed.add(block.sentence)
                self._listener.on_detail(f"{job.stage}: {block.sentence}")
        return sentences

    def _conclude(self, job: JobSpec, kind: str, reason: str, message: str) -> HvkfError | None:
        """Say how a job ended, once its pods' last lines are here."""
        deadline_s = time.monotonic() + LAST_LOGS_S
        while time.monotonic() < deadline_s and not self._has_heard_all():
            self._take(TICK_S)
        if kind == "Complete":
            return None
        if reason == "DeadlineExceeded":
            return BadInput(
                f"{self._name} ran longer than jobs.{job.stage}.deadline_s={job.jobs.deadline_s}: "
                "raise it, or use more workers."
            )
        newest = {}
        for pod in self._pods():
            if (pod_end := said.pod_end(pod)) is not None:
                newest[pod_end.part_index] = pod_end
        ends = sorted(newest.values(), key=severity)
        if not ends:
            return TryAgain(f"{self._name} failed ({reason}: {message}).")
        for pod_end in ends:
            if (log := self._logs.get(pod_end.name)) is not None:
                log.show_withheld(self._listener)
        words = "; ".join(self._words(job, pod_end) for pod_end in ends[:SHOWN_ENDS])
        more = f"; and {len(ends) - SHOWN_ENDS} more" if len(ends) > SHOWN_ENDS else ""
        return ends[0].fault(f"{words}{more}.")

    def _words(self, job: JobSpec, pod_end: said.PodEnd) -> str:
        log = self._logs.get(pod_end.name)
        last = (log.last_words() if log is not None else "") or pod_end.message.strip()
        where = "member" if job.is_gang else "index"
        words = f"{job.stage} {where} {pod_end.part_index} ({pod_end.name}) {pod_end.cause}"
        words += f": {last.rstrip('. ')}" if last else ""
        return words + (f" ({pod_end.fix})" if pod_end.fix else "")

    def _pods(self) -> list[Manifest]:
        """Return the job's pods, the oldest first."""
        pods = [pod for pod in self._seen["pod"].values() if said.job_of(pod) == self._name]
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def _has_heard_all(self) -> bool:
        """Whether the job's pods are seen to have ended, and their logs are read to the end.

        The watch of jobs may be ahead of that of pods.
        """
        pods = self._pods()
        logs = [self._logs.get(pod["metadata"]["name"]) for pod in pods]
        heard = all(log is not None and log.has_ended for log in logs)
        return bool(pods) and heard and all(said.has_ended(pod) for pod in pods)

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._listener.on_log(sentence)

    def _take_all(self) -> None:
        while not self._feed.messages.empty():
            self._take(TICK_S)

    def _take(self, timeout_s: float) -> None:
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
            self._events += message.value if message.action == REPLACED else [message.value]
        elif message.action == REPLACED:
            self._seen[message.kind] = {seen["metadata"]["name"]: seen for seen in message.value}
        elif message.action == "DELETED" and message.kind == "job":
            self._seen["job"].pop(message.value["metadata"]["name"], None)
        elif message.action == "DELETED" and not said.has_ended(message.value):
            self._seen["pod"].pop(message.value["metadata"]["name"], None)
        else:
            self._seen[message.kind][message.value["metadata"]["name"]] = message.value
        self._follow_logs()

    def _follow_logs(self) -> None:
        for name, pod in self._seen["pod"].items():
            if said.has_started(pod) and name not in self._logs and said.job_of(pod) == self._name:
                self._logs[name] = PodLog()
                self._feed.follow(name, ADOPTED_LINES if name in self._adopted_pods else None)

    def _handle_log(self, message: Message) -> None:
        pod, log = message.action, self._logs[message.action]
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
        seen = self._seen["pod"].get(pod)
        return seen is None or said.has_stopped(seen)

    def _hear(self, pod: str, log: PodLog, line: str) -> None:
        if (event := parse_line(line)) is None:
            log.hear(line, self._listener)
            return
        log.hear_progress()
        index = said.index_of(self._seen["pod"][pod]) if pod in self._seen["pod"] else 0
        if not self._is_gang or index == 0:  # its members take the same steps
            self._listener.on_progress(index, event)
