"""What a person sees in Prefect's UI while a job runs: progress, a table of parts, the logs.

Updates are sent from a thread of their own at a slow pace, so that neither a chatty worker nor a
server that is away holds up the job.
"""

import contextvars
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from flows.sightings import Sightings
from hvkf.jobs.spec import Listener
from hvkf.ledger import pending_parts
from hvkf.progress import WorkerBars, display
from hvkf.records import Plan
from hvkf.storage import Store

UPDATE_EVERY_S = 3.0
PARTS_EVERY_S = 15.0  # asks the workspace for a listing
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def watch(plan: Plan, store: Store) -> Iterator[Listener]:
    """Show a job on the terminal and in the UI while it runs; call it in a task."""
    logger = get_run_logger()
    pending = [part.index for part in pending_parts(store, plan)]
    sightings = Sightings([part.index for part in plan.parts], pending)
    reporter = _Reporter(plan, store, sightings, logger)
    with display() as shown, reporter.running():
        worker_bars = WorkerBars(shown, len(pending))

        def on_progress(worker: int, event: dict[str, Any]) -> None:
            worker_bars.show(worker, event)
            sightings.see(worker, event, time.monotonic())

        def on_log(line: str) -> None:
            shown.say(line)
            logger.info(line)

        yield Listener(on_progress, on_log, logger.info)


class _Reporter:
    """Sends what was seen to the two artifacts of a job."""

    def __init__(self, plan: Plan, store: Store, sightings: Sightings, logger: Logger) -> None:
        self._plan, self._store, self._sightings, self._logger = plan, store, sightings, logger
        self._progress = cast(UUID, create_progress_artifact(0.0, key=f"{plan.stage}-progress"))
        self._table = cast(
            UUID,
            create_table_artifact(
                sightings.rows(), key=f"{plan.stage}-parts", description="The parts of the job."
            ),
        )
        self._stop = threading.Event()
        self._is_away = False
        self._parts_seen_s = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Report from a thread, and once more at the end."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._loop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(UPDATE_EVERY_S)

    def _loop(self) -> None:
        while not self._stop.wait(UPDATE_EVERY_S):
            self._report(with_parts=time.monotonic() - self._parts_seen_s > PARTS_EVERY_S)
        self._report(with_parts=True)

    def _report(self, *, with_parts: bool) -> None:
        try:
            if with_parts:
                self._parts_seen_s = time.monotonic()
                pending = pending_parts(self._store, self._plan)
                self._sightings.see_pending(part.index for part in pending)
            percent, sentence = self._sightings.summary(time.monotonic())
            update_progress_artifact(self._progress, percent, description=sentence)
            with get_client(sync_client=True) as client:
                rows = json.dumps(self._sightings.rows())
                client.update_artifact(self._table, ArtifactUpdate(data=rows))
        except (httpx.HTTPError, PrefectException, RuntimeError, OSError) as fault:
            if not self._is_away:
                self._logger.warning(f"The progress cannot be shown for now: {fault}")
            self._is_away = True
        else:
            self._is_away = False
