"""How a flow ends by an error of ours: a state whose message is the reason, without a traceback.

A run that was told to stop ends in the same way: its state says what is saved, and how it goes on.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from prefect import State
from prefect._internal.control_listener import get_intent  # no public way; Prefect is pinned
from prefect.artifacts import create_table_artifact
from prefect.exceptions import CancelledRun, CrashedRun, FailedRun, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, Failed

from flows.server import wait_for_server
from hvkf.errors import HvkfError, WorkStopped

ResultT = TypeVar("ResultT")

CANCEL = "cancel"
RUN_LOGGER = "prefect.flow_runs"
GOES_ON = "Retried, or run again, it goes on from there."

# Errors of the runs of this process: their states have the words alone.
_errors: dict[UUID, HvkfError] = {}


class _WithoutEcho(logging.Filter):
    """Drops what Prefect logs of a run that has ended in words: the words again, in a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (CancelledRun, CrashedRun, FailedRun))


_ECHO = _WithoutEcho()


def told(stage: str, work: Callable[[], ResultT]) -> ResultT | State[Any]:
    """Do a flow's work; an error of ours becomes the state that the run ends in.

    The first line is the state's message. Further lines are a table among the run's artifacts.
    """
    logging.getLogger(RUN_LOGGER).addFilter(_ECHO)
    try:
        with stop_told():
            return work()
    except HvkfError as error:
        return failed(stage, error)


def kept(work: Callable[[], None]) -> State[Any] | None:
    """Do a task's work; an error of ours ends it quietly, and `result_of` raises it in the flow."""
    try:
        with stop_told():
            work()
    except HvkfError as error:
        return _keep(error)
    return None


class ToldToStop(WorkStopped):
    """Whoever runs this flow has told it to stop: a person who cancels, or a machine that ends.

    Args:
        saved: What is saved, as a sentence.
        is_cancelled: Whether it was a person.
    """

    def __init__(self, saved: str, *, is_cancelled: bool) -> None:
        super().__init__(f"Stopped. {saved} {GOES_ON}" if saved else f"Stopped. {GOES_ON}")
        self.is_cancelled = is_cancelled


@contextmanager
def stop_told(saved: Callable[[], str] = str) -> Iterator[None]:
    """Raise `ToldToStop` in place of Prefect's signal, which ends a run with "Crash detected!".

    Args:
        saved: Says what is saved; it is asked when the work has ended.
    """
    try:
        yield
    except TerminationSignal:
        intent = get_intent()
        if intent not in (None, CANCEL):
            raise  # the run goes on elsewhere: its worker owns its next state
        raise ToldToStop(saved(), is_cancelled=intent == CANCEL) from None


def _keep(error: HvkfError) -> State[Any]:
    run_id = flow_run.get_id()
    if run_id is not None:
        _errors[UUID(run_id)] = error
    message = str(error).partition("\n")[0]
    if isinstance(error, ToldToStop):
        return Cancelled(message=message) if error.is_cancelled else Crashed(message=message)
    return Failed(message=message)


def failed(stage: str, error: HvkfError) -> State[Any]:
    """Return the state of a run that an error of ours ends, and keep the error for its parent."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    say = get_run_logger().info if isinstance(error, ToldToStop) else get_run_logger().error
    say("%s", error)
    if more:
        wait_for_server()
        rows = [{"": number, "what is wrong": line} for number, line in enumerate(more, start=1)]
        create_table_artifact(rows, key=f"{stage}-errors", description=first)
    return _keep(error)


def result_of(state: State[Any]) -> Any:
    """Return what a task or a flow run below this one ended with.

    Raises:
        HvkfError: the error of ours that it ended by.
        BaseException: any other that it ended by.
    """
    run_id = state.state_details.flow_run_id
    if run_id is not None and (error := _errors.pop(run_id, None)) is not None:
        raise error
    return state.result()
