"""The fuzz tests' own rule: what it lets pass, and what not."""

import time

import numpy as np
import pytest

from hvkf.errors import BadInput
from tests.fuzz import bounds


def test_an_error_of_the_project_is_an_answer() -> None:
    with bounds.in_bounds():
        raise BadInput("a.csv: line 3 has no caption; write one.")


def test_another_exception_is_none() -> None:
    with pytest.raises(KeyError), bounds.in_bounds():
        raise KeyError("column")


def test_a_message_that_nobody_reads_is_none() -> None:
    with pytest.raises(AssertionError, match="700 characters"), bounds.in_bounds():
        raise BadInput("x" * 700)


def compute_for_ever() -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass


def test_an_endless_loop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.1)
    with pytest.raises(TimeoutError), bounds.in_bounds():
        compute_for_ever()


def test_memory_that_was_given_back_counts_too() -> None:
    with pytest.raises(AssertionError, match="MB for one input"), bounds.in_bounds():
        np.ones(600 << 20, np.uint8)
