"""The data path against its limits: prints a row for each goal, and keeps the figures.

hvkf-tiny on moving shapes and real clips, on the CPU, by OMP_NUM_THREADS threads. Each row is a
ratio to a limit that is measured alone in the same run, or to what the row names.
"""

import argparse
import importlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.data_path.measuring import Row, Scale
from benchmarks.timing import machine

ROWS = ("cache", "encode", "train", "start", "memory", "growth", "processes")
RESULTS = Path(__file__).parents[1] / "results"
QUICK_REPEATS, REPEATS = 1, 5


def main() -> None:
    """Measure, print, keep; the exit code says whether all goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, once")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for dated figures")
    options = parser.parse_args()
    scale = Scale(QUICK_REPEATS if options.quick else REPEATS, options.quick)
    rows: list[Row] = []
    for name in options.only:
        begun_s = time.monotonic()
        rows += importlib.import_module(f"benchmarks.data_path.{name}_row").measure(scale)
        print(f"{name}: measured in {time.monotonic() - begun_s:.0f} s", flush=True)
        show(rows)
    keep(options.results, rows, is_quick=options.quick)
    raise SystemExit(0 if all(row.is_met for row in rows) else 1)


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table("stage", "what", "goal", "by the clock", "by the CPU", "verdict")
    for row in rows:
        clock, cpu = ("" if value is None else f"{value:g}" for value in (row.clock, row.cpu))
        table.add_row(row.stage, row.what, row.goal, clock, cpu, "met" if row.is_met else "MISSED")
    Console(width=120).print(table)


def keep(folder: Path, rows: list[Row], *, is_quick: bool) -> None:
    """Append the figures to those of the day."""
    moment = datetime.now(UTC)
    file = folder / f"data-path-{moment:%Y-%m-%d}.json"
    runs: list[Any] = json.loads(file.read_text()) if file.exists() else []
    found = [
        {**row._asdict(), "details": dict(row.details), "found": row.found, "is_met": row.is_met}
        for row in rows
    ]
    run = {"time": f"{moment:%H:%M:%S}Z", "quick": is_quick, "machine": machine(), "rows": found}
    file.write_text(json.dumps([*runs, run], indent=1) + "\n")
    print(f"kept in {file}")


if __name__ == "__main__":
    main()
