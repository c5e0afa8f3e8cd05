"""SIGTERM while another library's code runs, which turns it into an error of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hvkf import stops
from hvkf.errors import BadInput, Stopped
from hvkf.media.errors import MediaFault, only_this_file
from hvkf.model import loading
from hvkf.storage import FolderStore

GOLDEN = Path(__file__).parent / "golden" / "tiny_hunyuan"


@contextlib.contextmanager
def as_a_library_does(error: type[Exception]) -> Iterator[None]:
    """Turn whatever a callback raises into an error of one's own."""
    try:
        yield
    except BaseException:
        raise error("a library's own words") from None


def stop_within(error: type[Exception]) -> None:
    with as_a_library_does(error):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("takes_stops")
@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError, MediaFault, MemoryError])
def test_a_stop_amid_a_file_is_not_that_files_failure(error: type[Exception]) -> None:
    def raised(words: str) -> Exception:
        return MediaFault("decoder", words) if error is MediaFault else error(words)

    with pytest.raises(Stopped), only_this_file("a.mp4"):
        stop_within(raised)  # type: ignore[arg-type]


def test_an_error_without_a_stop_stays_that_files_failure() -> None:
    with pytest.raises(MediaFault, match=r"a\.mp4"), only_this_file("a.mp4"):
        raise ValueError("odd")


@pytest.mark.usefixtures("takes_stops")
def test_a_stop_amid_loading_a_model_is_no_bad_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    # As safetensors answers when the stop comes while it asks PyTorch for a shape.
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: stop_within(ValueError))
    with pytest.raises(Stopped):
        loading.load_vae(GOLDEN, dtype=torch.float32)


@pytest.mark.parametrize("error", ["ValueError('odd')", "BadInput('odd')", "OSError('odd')"])
def test_a_command_that_was_stopped_says_so_whatever_ended_it(error: str, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from hvkf import cli\n"
        "from hvkf.errors import BadInput\n"
        "def verify(store):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException:\n"
        f"        raise {error} from None\n"
        "import hvkf.verify\n"
        "hvkf.verify.verify_workspace = verify\n"
        f"sys.argv = ['hvkf', 'verify', '--workspace', {str(tmp_path)!r}]\n"
        "cli.main()\n"
    )
    FolderStore(tmp_path).put_new("registry/notes.txt", b"something is there")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == Stopped.exit_code, ended.stderr
    assert ended.stderr.startswith("error: Told to stop")


def test_who_was_not_stopped_ends_by_its_own_error() -> None:
    error = BadInput("odd")
    assert stops.cause_of_end(error) is error
    stops.raise_if_told()
