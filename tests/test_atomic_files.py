"""A workspace on file systems without hard links or without locks."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hvkf import atomic_files, doctor
from hvkf.errors import AlreadyExists, BadInput
from hvkf.storage import FolderStore, open_store


def no_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the system answer as it does on a file system without hard links."""

    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", link)


def no_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it have no rename that replaces nothing, as FUSE without it."""
    monkeypatch.setattr(atomic_files, "RENAME_NOREPLACE", 1 << 20)  # EINVAL, as there


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_a_record_is_still_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    no_links(monkeypatch, number)
    store = open_store(str(tmp_path / "workspace"))
    store.put_new("once", b"first")
    with pytest.raises(AlreadyExists):
        store.put_new("once", b"second")
    assert store.read("once") == b"first"
    store.put_if("once", b"second", b"first")
    assert store.read("once") == b"second"
    assert isinstance(store, FolderStore)
    assert list(store.list_partial()) == []


def test_without_links_and_renames_the_first_command_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_links(monkeypatch, errno.EPERM)
    no_renames(monkeypatch)
    with pytest.raises(BadInput, match="has neither hard links nor renames") as caught:
        open_store(str(tmp_path / "workspace"))
    assert caught.value.exit_code == 65
    assert "s3://bucket/prefix" in str(caught.value)
    (line,) = doctor._file_system("the workspace", tmp_path / "workspace")
    assert line.startswith("lacks   The file system of")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_the_first_lock_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = open_store(str(tmp_path / "workspace"))
    store.put_new("record", b"1")

    def flock(file: object, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BadInput, match="has no locks") as caught:
        store.put_if("record", b"2", b"1")
    assert caught.value.exit_code == 65
    (line,) = doctor._file_system("the workspace", tmp_path / "workspace")
    assert "has no locks" in line


def test_doctor_finds_a_usual_folder_fit_and_leaves_nothing_there(tmp_path: Path) -> None:
    (line,) = doctor._file_system("the workspace", tmp_path / "not" / "there")
    assert line == "has     links and locks where the workspace lies"
    assert list(tmp_path.iterdir()) == []


def test_doctor_measures_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_SHARED_BYTES", 1)
    (line,) = doctor._shared_memory(tmp_path)
    assert line.startswith("has ")
    monkeypatch.setattr(doctor, "LOW_SHARED_BYTES", 1 << 80)
    (line,) = doctor._shared_memory(tmp_path)
    assert "data.dataloader_kwargs.num_workers" in line
