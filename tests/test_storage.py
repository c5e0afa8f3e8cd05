"""The workspace in a folder keeps its promises."""

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvkf.errors import AlreadyExists, BadInput, CorruptData, DiskFull
from hvkf.storage import (
    FORMAT_FILE,
    FolderStore,
    LeadsOutside,
    explain_full_disk,
    open_folder,
    open_store,
)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_what_was_put_is_read_back(store: FolderStore) -> None:
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    assert store.read("a/b.json") == b"two"
    assert store.exists("a/b.json")
    assert not store.exists("a")


def test_a_missing_object_is_a_file_not_found_error(store: FolderStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("a")
    store.delete("a")


def test_put_new_writes_once(store: FolderStore) -> None:
    store.put_new("a", b"first")
    with pytest.raises(AlreadyExists):
        store.put_new("a", b"second")
    assert store.read("a") == b"first"


def test_of_many_at_once_exactly_one_creates_the_object(store: FolderStore) -> None:
    winners = []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        try:
            store.put_new("claim", str(number).encode())
        except AlreadyExists:
            return
        winners.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(winner).encode() for winner in winners] == [store.read("claim")]


def test_put_if_replaces_only_what_is_as_expected(store: FolderStore) -> None:
    store.put_if("a", b"first", None)
    with pytest.raises(AlreadyExists):
        store.put_if("a", b"second", None)
    with pytest.raises(AlreadyExists):
        store.put_if("a", b"second", b"other")
    store.put_if("a", b"second", b"first")
    store.delete("a")
    with pytest.raises(AlreadyExists):
        store.put_if("a", b"third", b"second")
    assert not store.exists("a")


def test_counting_up_at_once_loses_no_count(store: FolderStore) -> None:
    store.put("count", b"0")

    def count_up() -> None:
        done = 0
        while done < 20:
            found = store.read("count")
            try:
                store.put_if("count", str(int(found) + 1).encode(), found)
            except AlreadyExists:
                continue
            done += 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("count") == b"80"


def test_an_upload_that_fails_leaves_nothing_to_be_read(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)

    def break_down(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("hvkf.storage.shutil.copyfileobj", break_down)
    with pytest.raises(OSError, match="broken"):
        store.upload(source, "shards/one")
    assert list(store.list("shards")) == []
    assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize("is_other_device", [False, True])
def test_a_scratch_file_is_taken_from_the_same_device_and_from_another(
    store: FolderStore, tmp_path: Path, is_other_device: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if is_other_device else tmp_path) as folder:
        if is_other_device and os.stat(folder).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("/dev/shm is no device of its own here")
        source = Path(folder) / "shard"
        source.write_bytes(b"new")
        inode = source.stat().st_ino
        store.put("shards/one", b"old")
        store.take(source, "shards/one")
        is_moved = (store.root / "shards" / "one").stat().st_ino == inode
    assert store.read("shards/one") == b"new"
    assert is_moved is not is_other_device
    assert list(store.list_partial()) == []


def test_list_is_sorted_and_leaves_out_what_is_being_written(store: FolderStore) -> None:
    for name in ("x/b", "x/a/c", "y/d"):
        store.put(name, b"")
    (store.root / "x" / ".partial-1").write_bytes(b"")
    assert list(store.list("x")) == ["x/a/c", "x/b"]
    assert list(store.list("nothing")) == []


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", ""])
def test_a_path_that_leaves_the_workspace_is_refused(store: FolderStore, path: str) -> None:
    with pytest.raises(BadInput, match="leaves the workspace"):
        store.read(path)


def test_a_full_disk_is_said_with_the_folder_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"No space left .*`hvkf gc`"), explain_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_workspace_of_another_format_is_refused(tmp_path: Path) -> None:
    open_store(str(tmp_path))
    assert (tmp_path / FORMAT_FILE).read_text() == "1\n"
    (tmp_path / FORMAT_FILE).write_text("99\n")
    with pytest.raises(CorruptData, match="format '99'"):
        open_store(str(tmp_path))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(BadInput, match="gs://"):
        open_store("gs://bucket/prefix")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "file", "is a file: name a folder"),
        (lambda folder: folder / "file" / "below", r"lies below .*/file, a file"),
        (lambda folder: folder / ("x" * 300), "cannot be a folder: File name too long"),
        (lambda folder: folder / "loop", "cannot be a folder|is a file"),
        (lambda folder: f"{folder}/a\0b", "cannot be a folder"),
        (lambda _: "~nobody-here/x", "no home folder ~nobody-here"),
        (lambda _: "s3://", "names no bucket: ''"),
        (lambda _: "s3://a b/x", "names no bucket: 'a b'"),
        (lambda _: "s3://..%2f/x", r"names no bucket: '\.\.%2f'"),
        (lambda _: "s3://" + "x" * 900, "names no bucket"),
    ],
)
def test_what_can_be_no_workspace_is_refused(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadInput, match=said) as caught:
        open_store(str(make(tmp_path)))
    assert len(str(caught.value)) < 600


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/w").url == str(tmp_path / "w")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A workspace that may not be written, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this process may not mount a small device")
    try:
        FolderStore(folder / "old").put("a/b", b"kept")
        open_store(str(folder / "old"))
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_workspace_is_read_and_not_written(read_only: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"new")
    store = open_store(str(read_only / "old"))
    assert store.read("a/b") == b"kept"
    writes: list[Callable[[], None]] = [
        lambda: store.put("a/c", b""),
        lambda: store.put_new("a/c", b""),
        lambda: store.put_if("a/b", b"", b"kept"),
        lambda: store.upload(file, "a/c"),
        lambda: store.take(file, "a/c"),
        lambda: store.delete("a/b"),
    ]
    for write in writes:
        with pytest.raises(BadInput, match="cannot be used: a read-only file system"):
            write()
    with pytest.raises(BadInput, match="cannot be used: a read-only file system"):
        open_store(str(read_only / "new"))


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match="permission denied"):
        list(store.list("a"))


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links that stay inside it, and links that lead out of it."""
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    for folder in (inside / "videos", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(b"x")
    (inside / "inner").symlink_to("videos")
    (inside / "inner.mp4").symlink_to("videos/a.mp4")
    (inside / "outer").symlink_to(elsewhere)
    (inside / "outer.mp4").symlink_to(elsewhere / "a.mp4")
    (inside / "chain.mp4").symlink_to("outer/a.mp4")
    return inside


@pytest.mark.parametrize("path", ["videos/a.mp4", "inner/a.mp4", "inner.mp4"])
def test_links_that_stay_inside_a_confined_folder_are_followed(linked: Path, path: str) -> None:
    for root in (linked, linked.parent / "link"):  # the folder may itself be a link
        if not root.exists():
            root.symlink_to(linked)
        store = open_folder(str(root), confined=True)
        assert store.read(path) == b"x"
        assert store.stat(path).size == 1


@pytest.mark.parametrize("path", ["outer/a.mp4", "outer.mp4", "chain.mp4"])
def test_a_link_that_leads_out_of_a_confined_folder_is_refused_by_every_door(
    linked: Path, path: str, tmp_path: Path
) -> None:
    assert open_folder(str(linked)).read(path) == b"x"
    store = open_folder(str(linked), confined=True)
    doors: list[Callable[[], object]] = [
        lambda: store.read(path),
        lambda: store.stat(path),
        lambda: store.exists(path),
        lambda: store.local_path(path),
        lambda: store.download(path, tmp_path / "copy"),
    ]
    for door in doors:
        with pytest.raises(LeadsOutside, match=f"{path} is a link that leads out of"):
            door()
    assert not (tmp_path / "copy").exists()


def test_a_folder_beside_with_a_longer_name_is_not_inside(tmp_path: Path) -> None:
    for name in ("in", "in-other"):
        (tmp_path / name).mkdir()
    (tmp_path / "in-other" / "a").write_bytes(b"x")
    (tmp_path / "in" / "a").symlink_to("../in-other/a")
    with pytest.raises(LeadsOutside):
        open_folder(str(tmp_path / "in"), confined=True).read("a")
