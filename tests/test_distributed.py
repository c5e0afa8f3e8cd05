import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hvkf import distributed
from hvkf.distributed import (
    combined_exit_code,
    is_first_of_node,
    launch_command,
    num_ranks,
)
from hvkf.errors import BadInput, OwnError, Stopped, TryAgain

ROOT = Path(__file__).parents[1]
RUN = ["hvkf.cli", "train", "run", "--plan", "abc"]
WAIT_S = 60.0


def test_one_machine_needs_only_the_number_of_processes() -> None:
    assert launch_command(RUN, num_processes=8) == [
        *(sys.executable, "-m", "hvkf.distributed", "--processes", "8", "--"),
        *RUN,
    ]


def test_several_machines_meet_at_machine_0() -> None:
    command = launch_command(
        RUN, num_processes=8, num_nodes=2, node_rank=1, rendezvous="train-0.train:29500"
    )
    options = command[3 : command.index("--")]
    assert options == [
        *("--processes", "8", "--nodes", "2", "--node-rank", "1"),
        *("--rendezvous", "train-0.train:29500"),
    ]
    with pytest.raises(BadInput, match="HOST:PORT"):
        launch_command(RUN, num_processes=8, num_nodes=2)


def test_torchrun_is_told_not_to_restart_and_when_to_give_up_waiting() -> None:
    options = distributed.parse(
        [
            *["--processes", "4", "--nodes", "2", "--node-rank", "1"],
            *["--rendezvous", "host:29500", "--"],
            *RUN,
        ]
    )
    command = distributed.torchrun_command(options, 25)
    joined = " ".join(command)
    assert "--max-restarts 0 --shutdown-timeout 25" in joined
    assert "--nnodes 2 --node-rank 1 --master-addr host --master-port 29500" in joined
    assert command[-len(RUN) - 1 :] == ["-m", *RUN]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 0, 1: 0}, 0),
        ({0: 143, 1: 143}, 143),
        ({0: 65, 1: 143}, 65),
        ({0: 0, 1: 75}, 75),
        ({0: 1, 1: 143}, 1),
        ({0: 75, 1: 65}, 65),
        # Killed, as by the kernel for its memory: that may pass.
        ({0: 143}, 75),
        ({}, 75),
        ({0: 65}, 65),
    ],
)
def test_ranks_codes_map_to_what_the_job_ended_by(codes: dict[int, int], expected: int) -> None:
    assert combined_exit_code(0 if expected == 0 else 1, codes, 2) == expected


def test_a_launchers_own_failure_is_none_of_the_known_codes() -> None:
    assert combined_exit_code(1, {0: 0, 1: 0}, 2) == 1


def test_ranks_are_counted_by_the_launcher_or_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert num_ranks(3) == 3
    assert not distributed.is_launched()
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    assert num_ranks(3) == 8
    assert distributed.is_launched()
    assert distributed.rank() == 5


@pytest.mark.parametrize("fault", [BadInput("x"), TryAgain("x"), Stopped("x"), ValueError("x")])
def test_a_rank_records_its_exit_code(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVKF_EXIT_CODES", str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(type(fault)), distributed.exit_code_recorded():
        raise fault
    assert (tmp_path / "3").read_text() == str(getattr(fault, "exit_code", OwnError.exit_code))


def launch(folder: Path, *ends: str) -> subprocess.Popen[bytes]:
    command = launch_command(["tests.rank_that_ends", str(folder), *ends], num_processes=len(ends))
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def wait_for_ranks(folder: Path, count: int) -> list[int]:
    """Wait until the ranks have started; return their process ids."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        files = [file for file in folder.glob("started-*") if file.read_text()]
        if len(files) == count:
            return [int(file.read_text()) for file in files]
        time.sleep(0.05)
    raise AssertionError("the ranks did not start")


@pytest.mark.parametrize(
    ("ends", "code"),
    [(("65", "waits"), 65), pytest.param(("ok", "killed"), 75, marks=pytest.mark.slow)],
)
def test_the_launcher_ends_with_the_code_that_the_ranks_mean(
    ends: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    assert launch(tmp_path, *ends).wait(WAIT_S) == code


def test_sigterm_to_the_launcher_reaches_the_ranks_and_comes_back_as_143(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "waits", "waits")
    wait_for_ranks(tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(WAIT_S) == 143


def test_killing_the_launcher_ends_the_ranks(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "waits", "waits")
    ranks = [psutil.Process(pid) for pid in wait_for_ranks(tmp_path, 2)]
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait(WAIT_S)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


@pytest.mark.parametrize(("local_rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_one_rank_of_each_machine_speaks(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, speaks: bool
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert is_first_of_node() is speaks
