"""Waiting for what a cluster does in its own time."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(what: str, look: Callable[[], Any], limit_s: float = 300.0) -> Any:
    """Look until something is found; fail after the limit."""
    deadline_s = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline_s, f"{what}: not within {limit_s:.0f} s"
        time.sleep(0.5)
    return found
