"""How a flow ends by an error of ours: a state whose message is the reason, without a traceback."""

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from prefect import State
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.server import wait_for_server
from hvkf.errors import HvkfError

ResultT = TypeVar("ResultT")

# Errors of the runs of this process: their states have the words alone.
_errors: dict[UUID, HvkfError] = {}


def told(stage: str, work: Callable[[], ResultT]) -> ResultT | State[Any]:
    """Do a flow's work; an error of ours becomes the state that the run ends in.

    The first line is the state's message. Further lines are a table among the run's artifacts.
    """
    try:
        return work()
    except HvkfError as error:
        return failed(stage, error)


def kept(work: Callable[[], None]) -> State[Any] | None:
    """Do a task's work; an error of ours ends it quietly, and `result_of` raises it in the flow."""
    try:
        work()
    except HvkfError as error:
        return _keep(error)
    return None


def _keep(error: HvkfError) -> State[Any]:
    run_id = flow_run.get_id()
    if run_id is not None:
        _errors[UUID(run_id)] = error
    return Failed(message=str(error).partition("\n")[0])


def failed(stage: str, error: HvkfError) -> State[Any]:
    """Return the state of a run that an error of ours ends, and keep the error for its parent."""
    first, *more = str(error).splitlines() or [type(error).__name__]
    get_run_logger().error("%s", error)
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
