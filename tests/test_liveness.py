"""Whether a process still runs."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hvkf.liveness import ProcessMark, is_running, this_process

DAY_S = 86_400


def test_this_process_runs() -> None:
    assert this_process().number == os.getpid()
    assert 0 < this_process().started_s <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert is_running(this_process())


def test_a_process_that_ended_does_not_run() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_running(ProcessMark(ended.pid, this_process().started_s))


def test_a_later_process_of_the_same_number_is_another() -> None:
    assert not is_running(this_process()._replace(started_s=this_process().started_s - 60))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_runs_on_when_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = this_process()
    started_at_s = psutil.Process().create_time()
    # What the kernel says after the clock was set back by a day: that it was started earlier.
    stat = Path("/proc/stat").read_text()
    booted_s = int(re.search(r"^btime (\d+)$", stat, re.MULTILINE)[1])  # type: ignore[index]
    changed = stat.replace(f"btime {booted_s}", f"btime {booted_s - DAY_S}")
    (tmp_path / "stat").write_text(changed)
    (tmp_path / str(os.getpid())).mkdir()
    shutil.copyfile("/proc/self/stat", tmp_path / str(os.getpid()) / "stat")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert psutil.Process().create_time() == pytest.approx(started_at_s - DAY_S, abs=1)
    assert is_running(before)
