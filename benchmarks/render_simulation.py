"""A thousand workers on a hundred thousand rows: is each row rendered once, and what is wasted?

What is simulated, and how, is in `tests/stages/simulated_workers.py`; run with PYTHONPATH=. set.
"""

import argparse
import json
from pathlib import Path

from tests.stages.simulated_workers import World, simulate

MOST_WASTED = 0.02


def main() -> None:
    """Simulate, print, and keep the figures; the exit code says whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=World().num_workers)
    parser.add_argument("--rows", type=int, default=World().num_rows)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    world = World(num_workers=options.workers, num_rows=options.rows, seed=options.seed)
    figures = {"world": world._asdict(), **simulate(world)}
    print(json.dumps(figures, indent=2))
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(figures, indent=2) + "\n")
    done = figures["rendered_once"] + figures["set_aside"] == figures["rows"]
    raise SystemExit(0 if done and figures["wasted_share"] < MOST_WASTED else 1)


if __name__ == "__main__":
    main()
