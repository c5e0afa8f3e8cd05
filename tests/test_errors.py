"""A stop goes through all code to where the process ends, and no handler takes it for an error."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvkf
from hvkf.errors import HvkfError, Stopped, WorkStopped

ROOT = Path(hvkf.__file__).parents[1]
# Signals are raised in the main thread alone. These run in others, and hand on what ended them to
# the thread that waits for them.
PASSES_ON = {"hvkf/ahead.py", "hvkf/jobs/feed.py", "hvkf/jobs/owners.py"}
CATCHES_ALL = {"BaseException", "BaseExceptionGroup"}


def handlers(file: Path) -> Iterator[ast.ExceptHandler]:
    """Yield a file's handlers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ExceptHandler):
            yield node


def takes_a_stop(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches whatever is raised."""
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & CATCHES_ALL)


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether a handler ends by raising what it caught."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_no_code_keeps_a_stop_to_itself() -> None:
    found = {
        file.relative_to(ROOT).as_posix()
        for folder in ("hvkf", "flows")
        for file in (ROOT / folder).rglob("*.py")
        for handler in handlers(file)
        if takes_a_stop(handler) and not raises_again(handler)
    }
    assert found == PASSES_ON


def test_nothing_suppresses_all_that_is_raised() -> None:
    for folder in ("hvkf", "flows"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and "suppress" in ast.unparse(node.func):
                    assert not CATCHES_ALL & set(ast.unparse(node).split("(")), (file, node.lineno)


@pytest.mark.parametrize("caught", [Exception, HvkfError])
def test_a_stop_is_no_error(caught: type[Exception]) -> None:
    assert not issubclass(Stopped, caught)
    assert issubclass(WorkStopped, caught)
    assert Stopped.exit_code == WorkStopped.exit_code == 143
