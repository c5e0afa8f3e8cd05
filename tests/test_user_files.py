"""Files that users name are opened without waiting, and what cannot be read is said in words."""

import errno
import os
import socket
from pathlib import Path

import pytest

from hvkf.errors import BadInput
from hvkf.user_files import (
    expanded,
    explain_unreadable,
    open_regular,
    read_regular,
    reason_of,
    shortened,
)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link") == b"bytes"


def test_a_named_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="named pipe"):
        open_regular(tmp_path / "a")


def test_devices_and_sockets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="device"):
        open_regular("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a"))
        with pytest.raises(OSError, match="socket"):
            open_regular(tmp_path / "a")


def test_a_folder_is_refused_as_python_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_no_descriptor_stays_open_after_a_refusal(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/dev/null", str(tmp_path)):
        with pytest.raises(OSError, match=r"device|directory"):
            open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5))
    assert read_regular(tmp_path / "a", 5) == bytes(5)
    with pytest.raises(OSError, match="too large") as caught:
        read_regular(tmp_path / "a", 4)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("x" * 300, "file name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_what_the_system_says_of_a_path_becomes_a_sentence(path: str, words: str) -> None:
    with (
        pytest.raises(BadInput, match=f"The LoRA x cannot be read: .*{words}.*; name another"),
        explain_unreadable("The LoRA x", "name another"),
    ):
        open_regular(path)


def test_a_home_that_is_not_there_is_said() -> None:
    assert expanded("~/x") == Path.home() / "x"
    with pytest.raises(BadInput, match=r"~nobody-of-this/x .*home directory.*whole path"):
        expanded("~nobody-of-this/x")


def test_words_fit_into_a_message_and_bring_no_control_characters() -> None:
    assert shortened("plain é") == "plain é"
    assert shortened("a\x1b[2Jb") == "a\\x1b[2Jb"
    assert len(shortened("x" * 10**6)) < 130
    assert reason_of(OSError(errno.EIO, os.strerror(errno.EIO), "x")) == "input/output error"
