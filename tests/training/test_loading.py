"""Loader processes that end, or live and deliver nothing, end the training with a sentence."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hvkf.ahead import ahead
from hvkf.errors import BadInput, TryAgain
from hvkf.settings.data import DataLoaderConfig
from hvkf.training import loading
from hvkf.training.loading import begin_loader_process, loader_errors_told

SETTINGS = DataLoaderConfig(num_workers=1)


class Unhandable:
    """A batch that no process can hand over, as a tensor without shared memory for it."""

    def __reduce__(self) -> str:
        raise OSError(28, "No space left on device", "/dev/shm/torch_1")


class Samples(Dataset[object]):
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> object:
        if self._kind == "ends":
            os._exit(3)
        if self._kind == "hangs":
            time.sleep(600)
        return Unhandable() if self._kind == "cannot hand over" else torch.zeros(1)


def begin(worker: int) -> None:
    begin_loader_process()


def load(kind: str, timeout_s: float) -> Iterator[object]:
    """Load as the training loop does: ahead, in a thread."""
    loader = DataLoader(Samples(kind), batch_size=None, num_workers=1, worker_init_fn=begin)
    with (
        loader_errors_told(SETTINGS),
        closing(ahead(iter(loader), timeout_s=timeout_s)) as loaded,
    ):
        yield from loaded


@pytest.mark.parametrize("kind", ["ends", "hangs", "cannot hand over"])
def test_a_process_that_delivers_nothing_is_a_sentence(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOW_SHARED_BYTES", 0)
    timeout_s = 2 if kind == "hangs" else 200
    with pytest.raises(TryAgain, match=r"num_workers: 1 delivered no batch"):
        list(load(kind, timeout_s))
    deadline_s = time.monotonic() + 60
    while any(thread.name == "ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s, "the thread that waits for batches lives on"
        time.sleep(0.2)
    assert not multiprocessing.active_children()


def test_with_little_shared_memory_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LOW_SHARED_BYTES", 1 << 80)
    with pytest.raises(
        BadInput, match=r"/dev/shm has .* too little for .*num_workers: 1"
    ) as caught:
        list(load("cannot hand over", 200))
    assert len(str(caught.value)) < 400


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="of ours"), loader_errors_told(SETTINGS):
        raise RuntimeError("of ours")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small /dev/shm of its own, as root")
def test_on_a_really_small_dev_shm_loading_ends_and_does_not_hang(tmp_path: Path) -> None:
    program = tmp_path / "load.py"
    program.write_text(
        "import torch\n"
        "from torch.utils.data import DataLoader\n"
        "from hvkf.ahead import ahead\n"
        "from hvkf.errors import BadInput\n"
        "from tests.training.test_loading import SETTINGS, begin, loader_errors_told\n"
        "class Big(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, index): return torch.zeros(1 << 20)\n"
        "try:\n"
        "    loader = DataLoader(Big(), batch_size=None, num_workers=1, worker_init_fn=begin)\n"
        "    with loader_errors_told(SETTINGS):\n"
        "        list(ahead(iter(loader), timeout_s=200))\n"
        "except BadInput as error:\n"
        "    print('told:', error)\n"
    )
    mount = "mount -t tmpfs -o size=256k tmpfs /dev/shm"
    ended = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{mount} && exec {sys.executable} {program}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "mount" in ended.stderr or "unshare" in ended.stderr:
        pytest.skip(f"no mount of one's own here: {ended.stderr[:80]}")
    assert "told: /dev/shm has 0.2 MiB" in ended.stdout, ended.stderr
