"""Whoever is told that everything is stopped has nothing running any more."""

import re
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.flows.house import House, serving_house, wait_until
from tests.flows.test_outages import train_for_long

pytestmark = [pytest.mark.lengthy, pytest.mark.slow, pytest.mark.timeout(1800)]


def of_house(folder: Path) -> list[str]:
    """Commands of all processes, whoever started them, that work for a house."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            home = process.environ().get("PREFECT_HOME")
            if home == str(folder / "prefect") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def steps(house: House, run: str) -> int:
    """Read how many training steps a run has shown."""
    shown = re.search(r"([\d,]+) of 100,?000", house.progress(run))
    return int(shown[1].replace(",", "")) if shown else 0


def stop(house: House, signals: tuple[int, ...]) -> None:
    """Send signals to `make serve`, and wait until it says that everything is stopped."""
    process = psutil.Process(house.process)
    for number in signals:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    process.wait(120)


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT, signal.SIGTERM)],
    ids=["SIGTERM", "Ctrl-C", "several at once"],
)
def test_nothing_lives_on_when_make_serve_is_stopped_with_a_stage_at_work(
    tmp_path: Path, signals: tuple[int, ...]
) -> None:
    with serving_house(tmp_path) as house:
        run = train_for_long(house, "stopped")
        wait_until(lambda: steps(house, run) > 0, "no step was taken", 300)
        assert [command for command in of_house(tmp_path) if "train" in command]
        stop(house, signals)
        said = (tmp_path / "serve.log").read_text()
        left = of_house(tmp_path)
    assert not left
    assert "Everything is stopped" in said
    assert list((tmp_path / "workspace" / "runs" / "stopped").glob("step-*/commit.json"))


def test_flows_whose_worker_was_killed_before_are_stopped_as_well(tmp_path: Path) -> None:
    with serving_house(tmp_path) as house:
        run = train_for_long(house, "orphaned")
        wait_until(lambda: steps(house, run) > 0, "no step was taken", 300)
        (worker,) = house.processes("flows.worker")
        worker.kill()
        stop(house, (signal.SIGTERM,))
        left = of_house(tmp_path)
    assert not left
    assert list((tmp_path / "workspace" / "runs" / "orphaned").glob("step-*/commit.json"))
