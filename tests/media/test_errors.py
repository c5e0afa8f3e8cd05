"""Whatever goes wrong with one file is that file's error; what concerns the stage ends it."""

import errno

import pytest

from hvkf.errors import CorruptData, DiskFull, Stopped, TryAgain
from hvkf.media.errors import MediaFault, only_this_file


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZeroDivisionError("division by zero"), "unexpected"),
        (ValueError("x" * 5000), "unexpected"),
        (AssertionError(), "unexpected"),
        (RecursionError("too deep"), "unexpected"),
        (FileNotFoundError(2, "No such file"), "missing"),
        (OSError(errno.EIO, "Input/output error"), "unreadable-file"),
        (PermissionError(errno.EACCES, "Permission denied"), "unreadable-file"),
    ],
)
def test_an_unexpected_error_is_the_files_own_and_names_it(error: Exception, code: str) -> None:
    with pytest.raises(MediaFault, match=r"odd\.mp4") as caught, only_this_file("odd.mp4"):
        raise error
    assert caught.value.code == code
    assert len(str(caught.value)) < 400
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        Stopped("told to stop"),
        TryAgain("storage is away"),
        CorruptData("flipped"),
        DiskFull("full"),
        MediaFault("corrupt", "a.mp4 is damaged"),
        KeyboardInterrupt(),
        SystemExit(143),
        MemoryError(),
        ModuleNotFoundError("No module named 'cv2'"),
    ],
)
def test_what_is_not_the_files_doing_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, only_this_file("odd.mp4"):
        raise error
    assert caught.value is error


def test_a_full_disk_ends_the_stage() -> None:
    with pytest.raises(DiskFull, match="no room"), only_this_file("odd.mp4"):
        raise OSError(errno.ENOSPC, "No space left on device")
