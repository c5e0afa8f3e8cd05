"""The Kubernetes executor: jobs are created or adopted, watched to their end, and told in words."""

import time
from collections.abc import Callable
from contextlib import closing

from hvkf.errors import AlreadyExists, BadInput, HvkfError, TryAgain
from hvkf.jobs import cluster_state as said
from hvkf.jobs.attempts import Incomplete, further_starts, is_done, severity
from hvkf.jobs.feed import Feed
from hvkf.jobs.kubernetes import Cluster
from hvkf.jobs.kubernetes_faults import NotFound
from hvkf.jobs.manifest import ATTEMPT_LABEL, WORK_LABEL, Manifest, build_manifest
from hvkf.jobs.owners import Lease, end_job, lease_until, leave, made_up_owner, own
from hvkf.jobs.pod_crashes import CrashNotes
from hvkf.jobs.spec import JobSpec, Listener, job_for
from hvkf.jobs.turns import IN_TURNS, Turns
from hvkf.jobs.watched import TICK_S, Watched
from hvkf.ledger import pending_parts
from hvkf.records import Plan
from hvkf.shown import counted
from hvkf.storage import Store

LAST_LOGS_S = 5.0
SHOWN_ENDS = 5


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
        watched = Watched(feed, listener, CrashNotes(store, listener).look)
        task = WaitingTask(cluster, watched, listener, owner or made_up_owner(), moves)
        failures, memory = 0, None
        while parts := turns.next(before := pending_parts(store, plan)):
            job = _with_memory(job_for(plan, store.url, parts, attempt=1), memory)
            fault = task.run(job)
            left = pending_parts(store, plan)
            if fault is None and is_done(plan, before, left):
                failures = 0
                continue
            more = job.jobs.memory_once_more
            if isinstance(fault, said.OutOfMemory) and more is not None and memory is None:
                memory = more
                listener.on_log(
                    f"{job.stage}: attempt {task.attempt} ended: {fault} Starting once more, with "
                    f"jobs.{job.stage}.memory_once_more={memory}."
                )
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


def _with_memory(job: JobSpec, memory: str | None) -> JobSpec:
    if memory is None:
        return job
    return job.model_copy(update={"jobs": job.jobs.model_copy(update={"memory": memory})})


class WaitingTask:
    """Waits for one work's jobs; shares what the cluster last said of them."""

    def __init__(
        self,
        cluster: Cluster,
        watched: Watched,
        listener: Listener,
        owner: str,
        moves: Callable[[], bool],
    ) -> None:
        self.attempt = 0
        self._cluster = cluster
        self._watched = watched
        self._listener = listener
        self._owner = owner
        self._moves = moves
        self._told: set[str] = set()
        self._detailed: set[str] = set()
        self._given_up: set[str] = set()  # uids of jobs that this has ended
        self._name = ""

    def run(self, job: JobSpec) -> HvkfError | None:
        """Create or adopt a job, wait for its end, and return the fault it ended by."""
        self._watched.is_gang = job.is_gang
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
            self._watched.take_all()
            live = [
                seen
                for seen in self._watched.jobs.values()
                if not said.finished(seen)
                and not said.is_deleted(seen)
                and seen["metadata"]["uid"] not in self._given_up
            ]
            if live:
                newest = max(live, key=said.attempt_of)
                if self._adopt(newest):
                    return
                self._watched.jobs.pop(newest["metadata"]["name"], None)
            elif job.is_gang and (left := self._watched.running_pods()):
                # Two gangs at once would write the same checkpoints.
                self._tell(f"{job.stage}: waits for {', '.join(left)} of an earlier attempt to end")
                if time.monotonic() > deadline_s:
                    raise TryAgain(
                        f"{', '.join(left)} of an earlier attempt does not end: if its node is "
                        "gone, kubectl delete pod --force it."
                    )
                self._watched.take(TICK_S)
            elif self._create(job):
                return

    def _adopt(self, found: Manifest) -> bool:
        name = found["metadata"]["name"]
        try:
            self._cluster.ride_out(
                lambda: self._cluster.set_owner(name, self._owner, lease_until(self._cluster))
            )
        except NotFound:
            return False
        self._watched.adopt_pods()
        self._begin(name, said.attempt_of(found))
        self._listener.on_log(f"{name} is there already: waiting for it")
        return True

    def _create(self, job: JobSpec) -> bool:
        attempts = [said.attempt_of(seen) for seen in self._watched.jobs.values()]
        attempt = max([*attempts, self.attempt]) + 1
        manifest = build_manifest(job.model_copy(update={"attempt": attempt}))
        own(manifest, self._owner, self._cluster)
        name = manifest["metadata"]["name"]
        try:
            created = self._cluster.ride_out(lambda: self._cluster.create_job(manifest))
        except AlreadyExists:  # another flow was first, or the answer to our own was lost
            found = self._cluster.ride_out(lambda: self._cluster.get_job(name))
            self._watched.jobs[name] = found
            if not said.finished(found):
                return False  # to be adopted
            self._begin(name, attempt)  # it has done its work since the parts were counted
            return True
        self._watched.jobs[name] = created
        assert created["metadata"]["labels"][ATTEMPT_LABEL] == str(attempt)
        self._begin(name, attempt)
        self._listener.on_log(f"{name} is created")
        return True

    def _begin(self, name: str, attempt: int) -> None:
        self._name, self.attempt = name, attempt
        self._watched.begin(name)

    def _wait(self, job: JobSpec, lease: Lease) -> HvkfError | None:
        waiting_since_s = time.monotonic()
        while True:
            self._watched.take(TICK_S)
            lease.check()
            current = self._watched.jobs.get(self._name)
            if current is None or said.is_deleted(current):
                return TryAgain(f"{self._name} was deleted while it ran: run again to go on.")
            if (end := said.finished(current)) is not None:
                return self._conclude(job, *end)
            pods = self._watched.pods_of_job()
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
                    f"{self._name}: {num_started} of {counted(needed, 'pod')} started within "
                    f"{job.jobs.start_timeout_s:g} s: {why}."
                )
            if job.is_gang and (silent := self._silent(job)):
                return self._give_up(job, current, silent)

    def _silent(self, job: JobSpec) -> list[str]:
        """Name the members that are lost, or have said nothing, for too long."""
        return [
            f"member {said.index_of(pod)} ({pod['metadata']['name']})"
            for pod in self._watched.pods_of_job()
            if said.has_started(pod)
            and not said.has_stopped(pod)
            and self._watched.silence_s(pod) > job.jobs.stall_s
        ]

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
        found = [said.blocked(pod, job.stage) for pod in self._watched.pods_of_job()]
        found += [
            said.blocked_by_event(event, job.stage)
            for event in self._watched.events
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
        while time.monotonic() < deadline_s and not self._watched.has_heard_all():
            self._watched.take(TICK_S)
        if kind == "Complete":
            return None
        if reason == "DeadlineExceeded":
            return BadInput(
                f"{self._name} ran longer than jobs.{job.stage}.deadline_s={job.jobs.deadline_s}: "
                "raise it, or use more workers."
            )
        newest = {}
        for pod in self._watched.pods_of_job():
            if (pod_end := said.pod_end(pod)) is not None:
                newest[pod_end.part_index] = pod_end
        ends = sorted(newest.values(), key=severity)
        if not ends:
            return TryAgain(f"{self._name} failed ({reason}: {message}).")
        for pod_end in ends:
            if (log := self._watched.logs.get(pod_end.name)) is not None:
                log.show_withheld(self._listener)
        words = "; ".join(self._words(job, pod_end) for pod_end in ends[:SHOWN_ENDS])
        more = f"; and {len(ends) - SHOWN_ENDS} more" if len(ends) > SHOWN_ENDS else ""
        return ends[0].fault(f"{words}{more}.")

    def _words(self, job: JobSpec, pod_end: said.PodEnd) -> str:
        log = self._watched.logs.get(pod_end.name)
        last = (log.last_words() if log is not None else "") or pod_end.message.strip()
        where = "member" if job.is_gang else "index"
        words = f"{job.stage} {where} {pod_end.part_index} ({pod_end.name}) {pod_end.cause}"
        words += f": {last.rstrip('. ')}" if last else ""
        return words + (f" ({pod_end.fix})" if pod_end.fix else "")

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._listener.on_log(sentence)
