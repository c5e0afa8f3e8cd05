"""What a piece of work took, and on which machine."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Took(NamedTuple):
    """Seconds by the clock, and of the CPU by this process and those it waited for."""

    clock_s: float
    cpu_s: float

    def __sub__(self, other: "Took") -> "Took":
        return Took(self.clock_s - other.clock_s, self.cpu_s - other.cpu_s)

    def figures(self) -> dict[str, float]:
        """Round for the results."""
        return {"clock_s": round(self.clock_s, 2), "cpu_s": round(self.cpu_s, 2)}


def now() -> Took:
    """Read the clock and what the CPU did so far, for this process and those it waited for."""
    used = os.times()
    cpu_s = used.user + used.system + used.children_user + used.children_system
    return Took(time.monotonic(), cpu_s)


def took(work: Callable[[], object]) -> Took:
    """Do something and time it."""
    begun = now()
    work()
    return now() - begun


def median_ratio(seconds: Sequence[float], of: Sequence[float]) -> float:
    """Compare two works' seconds turn by turn."""
    return round(statistics.median(a / b for a, b in zip(seconds, of, strict=True)), 3)


def keep(figures: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Write what was found to a JSON file, if there is to be one, and on which machine."""
    if file is not None:
        kept = {"machine": machine(), "figures": figures}
        file.write_text(json.dumps(kept, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Say what was measured on, and how busy it was."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
