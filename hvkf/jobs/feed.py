"""What happens on the cluster to one work's jobs, as one queue of messages from several threads.

Watches go on from their last version whatever happens to their connections; logs go on from their
last line. Whoever reads the queue meets a fault only when it is final.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from hvkf.errors import HvkfError, TryAgain
from hvkf.jobs.kubernetes import BACKOFF_S, Cluster
from hvkf.jobs.kubernetes_faults import ApiDown, Gone, NotFound

log = logging.getLogger(__name__)

KINDS = ("job", "pod", "event")
LOG_RETRY_S = 1.0
REPLACED = "REPLACED"


class Message(NamedTuple):
    """`kind` is job, pod, event, fault or of a log; `value` an object, objects, a line, a fault."""

    kind: str
    action: str
    value: Any


class Feed:
    """Watches jobs and pods with a label, and the namespace's events. A context manager."""

    def __init__(self, cluster: Cluster, selector: str) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self._cluster = cluster
        self._selectors = {"job": selector, "pod": selector, "event": ""}
        self._stopped = threading.Event()
        self._open: dict[str, Any] = {}
        self._newest: dict[str, str] = {}  # the time of each log's newest line
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Feed":
        try:
            for kind in KINDS:  # listed before anything is created, so that nothing is missed
                version = self._cluster.ride_out(partial(self._list, kind))
                self._start(f"watch {kind}", self._watch, kind, version)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for response in list(self._open.values()):
            _break_off(response)
        for thread in self._threads:
            thread.join(5.0)

    def follow(self, pod: str, num_lines: int | None = None) -> None:
        """Begin to read a pod's log, or its newest lines and what comes; or go on with it.

        Its lines come as messages of kind "log"; "log-open" and "log-lost" say when it is read,
        "log-end" that it has ended, with whether it could be read to its end.
        """
        self._start(f"log {pod}", self._follow, pod, num_lines)

    def _start(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(
            target=self._heard, args=(name, target, arguments), name=name, daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _heard(self, name: str, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Run a thread's work; whatever ends it is told to whoever waits for its messages."""
        try:
            target(*arguments)
        except BaseException as error:
            log.error("The thread %r ended:", name, exc_info=error)
            words = f"{type(error).__name__}: {error}"
            ended = HvkfError(f"The thread {name!r} that hears of the job ended ({words}).")
            self.messages.put(Message("fault", "", ended))

    def _list(self, kind: str) -> str:
        items, version = self._cluster.list(kind, self._selectors[kind])
        self.messages.put(Message(kind, REPLACED, items))
        return version

    def _opened(self, name: str) -> Callable[[Any], None]:
        def remember(response: Any) -> None:
            self._open[name] = response
            if self._stopped.is_set():
                _break_off(response)

        return remember

    def _watch(self, kind: str, version: str | None) -> None:
        failures, answered_s = 0, time.monotonic()
        while not self._stopped.is_set():
            try:
                if version is None:
                    version = self._list(kind)
                began_s = time.monotonic()
                for action, seen in self._cluster.watch(
                    kind, self._selectors[kind], version, self._opened(kind)
                ):
                    failures, answered_s = 0, time.monotonic()
                    version = seen["metadata"]["resourceVersion"]
                    if action != "BOOKMARK":
                        self.messages.put(Message(kind, action, seen))
                answered_s = time.monotonic()
                if answered_s - began_s < BACKOFF_S[0]:
                    self._stopped.wait(BACKOFF_S[0])
            except Gone:
                version = None
            except ApiDown as fault:
                if time.monotonic() - answered_s > self._cluster.settings.api_outage_s:
                    away = TryAgain(f"The Kubernetes API stayed away ({fault}): run again.")
                    self.messages.put(Message("fault", "", away))
                    return
                delay_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                self._stopped.wait(max(delay_s, fault.retry_after_s))
                failures += 1
            except HvkfError as fault:
                self.messages.put(Message("fault", "", fault))
                return

    def _follow(self, pod: str, num_lines: int | None) -> None:
        """Read a log to its end. A log that cannot be had fails nothing: its lines are lost."""
        if pod in self._newest:
            self._stopped.wait(LOG_RETRY_S)
        while not self._stopped.is_set():
            try:
                newest = self._newest.get(pod)
                for line in self._cluster.follow_log(pod, newest, self._log_opened(pod), num_lines):
                    moment, _, text = line.partition(" ")
                    if newest is None or comparable(moment) > comparable(newest):
                        newest = self._newest[pod] = moment
                        self.messages.put(Message("log", pod, text))
                self.messages.put(Message("log-end", pod, True))
                return
            except ApiDown:
                self.messages.put(Message("log-lost", pod, None))
                self._stopped.wait(LOG_RETRY_S)
            except NotFound:
                self.messages.put(Message("log-end", pod, True))
                return
            except HvkfError as fault:
                self.messages.put(Message("log", pod, f"(the log cannot be read: {fault})"))
                self.messages.put(Message("log-end", pod, False))
                return

    def _log_opened(self, pod: str) -> Callable[[Any], None]:
        remember = self._opened(pod)

        def tell(response: Any) -> None:
            remember(response)
            self.messages.put(Message("log-open", pod, None))

        return tell


def comparable(moment: str) -> str:
    """Write a log line's time so that later ones sort behind: servers leave off trailing zeros."""
    seconds, _, fraction = moment.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"


def _break_off(response: Any) -> None:
    """End a read that blocks in another thread; the answer may have ended by itself."""
    try:
        response.shutdown()
    except (ValueError, OSError, RuntimeError):
        return
