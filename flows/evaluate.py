"""The flow of the evaluate stage."""

from typing import Any

from prefect import State, flow

from flows.forms import EvaluateForm
from flows.stage import run_form
from hvkf.records import Summary


@flow(name="evaluate", persist_result=False, validate_parameters=False)
def evaluate(request: EvaluateForm) -> Summary | State[Any]:
    """Reads a run's LoRA and held-out clips; writes metrics and a report (evals/).

    Args:
        request: The deployed settings to use, and what to change of them.
    """
    return run_form("evaluate", EvaluateForm, request)
