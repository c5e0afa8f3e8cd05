"""The local executor: a job's parts, shared out to processes of this machine."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from hvkf.crashes import (
    WORKER_VARIABLE,
    crash_of,
    new_worker_name,
    note_crash,
    num_oom_kills,
)
from hvkf.distributed import launch_command
from hvkf.errors import BadInput, GaveWay, HvkfError, TryAgain, WorkStopped
from hvkf.jobs.spec import ERROR_PREFIX, JobSpec, Listener, fault_of, job_for
from hvkf.jobs.turns import IN_TURNS, ORDER_VARIABLE, LocalOrder, Turns, local_order, order_file
from hvkf.ledger import ATTEMPT_VARIABLE, pending_parts
from hvkf.processes import PARENT_VARIABLE
from hvkf.progress import PROGRESS_VARIABLE, parse_line
from hvkf.records import Plan
from hvkf.storage import Store

STOP_GRACE_S = 30.0


class Worker(NamedTuple):
    """A process, the name under which its crash would be noted, and what it was given to do."""

    process: subprocess.Popen[str]
    name: str
    parts: tuple[int, ...]


def run_plan(plan: Plan, store: Store, listener: Listener) -> None:
    """Run a plan's parts until the ledger has them all.

    A part is started again, up to `max_attempts` times, when its worker ended by a passing fault or
    was killed; bad input ends the job after the other workers are done. Of stages that go in turns,
    such parts are given up, and the fault is raised when the others are done.

    Raises:
        HvkfError: the fault of the worker that ended the job.
    """
    turns, starts = Turns(plan), Counter[int]()
    order = local_order(plan, store.url)
    attempt = 0
    with order or nullcontext():
        while parts := turns.next(pending_parts(store, plan)):
            attempt += 1
            starts.update(part.index for part in parts)
            job = job_for(plan, store.url, parts, attempt)
            with _turn(order, job, listener):
                fault = _run_job(job, store, listener)
            if isinstance(fault, WorkStopped):
                raise fault
            left = pending_parts(store, plan)
            if isinstance(fault, GaveWay):  # a start that did what it should is none of those
                starts.subtract(part.index for part in parts)
                continue
            is_spent = any(starts[part.index] >= job.jobs.max_attempts for part in left)
            if isinstance(fault, BadInput) or is_spent:
                unsaid = HvkfError(f"The job {job.name} ended without doing all its parts.")
                turns.give_up(parts, left, fault or unsaid)
            elif fault is not None:
                listener.on_log(f"{plan.stage}: attempt {attempt} ended: {fault}; starting again")
    turns.finish()


def _turn(
    order: LocalOrder | None, job: JobSpec, listener: Listener
) -> AbstractContextManager[None]:
    """Wait for a job's turn, where its stage has turns."""
    if order is None:
        return nullcontext()

    def on_wait(for_whom: str) -> None:
        listener.on_log(f"{job.stage}: waits for its turn in {job.workspace}: {for_whom}")

    assert job.parts is not None
    return order.turn(len(job.parts), on_wait)


def worker_command(job: JobSpec, parts: Sequence[int]) -> list[str]:
    """Write the command that a worker process runs; the same wherever it runs."""
    listed = ",".join(map(str, parts))
    plan = ["--workspace", job.workspace, "--plan", job.plan, "--parts", listed]
    arguments = ["hvkf.cli", job.stage, "run", *plan]
    if job.is_gang and job.jobs.workers > 1:
        return launch_command(arguments, num_processes=job.jobs.workers)
    return [sys.executable, "-m", *arguments]


def share_out(parts: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Deal parts to at most `num_workers` workers in turn."""
    shares = [tuple(parts[worker::num_workers]) for worker in range(num_workers)]
    return [share for share in shares if share]


def worker_environment(job: JobSpec, num_workers: int) -> dict[str, str]:
    """Set what a worker process finds: its share of the cores, and whom it reports to."""
    threads = job.jobs.threads or max(1, (os.cpu_count() or 1) // num_workers)
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        PROGRESS_VARIABLE: "lines",
        PARENT_VARIABLE: str(os.getpid()),
        ATTEMPT_VARIABLE: job.name,
        ORDER_VARIABLE: str(order_file(job.workspace)) if job.stage in IN_TURNS else "",
    }


def _run_job(job: JobSpec, store: Store, listener: Listener) -> HvkfError | None:
    """Start the job's workers, relay what they say, and return the worst fault."""
    assert job.parts is not None
    shares = share_out(job.parts, 1 if job.is_gang else job.jobs.workers)
    environment = worker_environment(job, job.jobs.workers if job.is_gang else len(shares))
    num_killed = num_oom_kills()
    workers: list[Worker] = []
    lines: queue.Queue[tuple[int, str | None]] = queue.Queue()
    try:
        for index, share in enumerate(shares):
            worker = _start(job, share, environment)
            workers.append(worker)
            watching = (index, worker, store, num_killed, lines)
            threading.Thread(target=_watch, args=watching, daemon=True).start()
        last_words = _relay(lines, shares, listener)
    except BaseException:
        _stop(workers)
        raise
    faults = []
    for index, worker in enumerate(workers):
        code = worker.process.wait()
        sentence = last_words.get(index) or f"A worker of {job.name} ended with exit code {code}"
        faults.append(fault_of(code, sentence))
        if code == -signal.SIGKILL and num_oom_kills() > num_killed:
            faults[-1] = BadInput(
                f"{job.name}: a worker was killed, for memory ran out: raise this machine's or "
                f"container's memory, or lower jobs.{job.stage}.workers or the batch size."
            )
    return max((fault for fault in faults if fault), key=_severity, default=None)


def _severity(fault: HvkfError) -> int:
    """Order faults by how little another attempt can help."""
    return {
        GaveWay.exit_code: -1,
        TryAgain.exit_code: 0,
        WorkStopped.exit_code: 2,
        BadInput.exit_code: 3,
    }.get(fault.exit_code, 1)


def _start(job: JobSpec, share: tuple[int, ...], environment: dict[str, str]) -> Worker:
    name = new_worker_name(job.name)
    process = subprocess.Popen(
        worker_command(job, share),
        env={**environment, WORKER_VARIABLE: name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return Worker(process, name, share)


def _watch(
    index: int,
    worker: Worker,
    store: Store,
    num_killed: int,
    lines: "queue.Queue[tuple[int, str | None]]",
) -> None:
    """Pass on what a worker says, and note how it ended if it crashed."""
    assert worker.process.stdout is not None
    try:
        with worker.process.stdout as output:
            for line in output:
                lines.put((index, line.rstrip("\n")))
        code = worker.process.wait()
        how = crash_of(code, ran_out_of_memory=num_oom_kills() > num_killed)
        if how is not None:
            lines.put((index, f"worker {worker.name} crashed: {how}"))
            note_crash(store, worker.name, how)
    except (HvkfError, OSError) as error:
        lines.put((index, f"The end of worker {worker.name} could not be noted: {error}"))
    finally:
        lines.put((index, None))  # whatever ends this: whoever relays must not wait for ever


def _relay(
    lines: "queue.Queue[tuple[int, str | None]]",
    shares: Sequence[tuple[int, ...]],
    listener: Listener,
) -> dict[int, str]:
    """Pass on progress and log lines until all workers have closed their output."""
    last_words: dict[int, str] = {}
    num_workers = len(shares)
    while num_workers:
        index, line = lines.get()
        if line is None:
            num_workers -= 1
        elif (event := parse_line(line)) is not None:
            listener.on_progress(index, {**event, "parts": len(shares[index])})
        elif line.startswith(ERROR_PREFIX):
            last_words[index] = line.removeprefix(ERROR_PREFIX)
        else:
            listener.on_log(line)
    return last_words


def _stop(workers: Sequence[Worker]) -> None:
    """Ask the workers to stop and save; kill those that do not within one grace period."""
    deadline_s = time.monotonic() + STOP_GRACE_S
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
