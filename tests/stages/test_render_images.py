"""A manifest's images: found below their folder, named by content, or refused one by one."""

import errno
import os
import socket
import unicodedata
from pathlib import Path

import pytest

from hvkf.keyframe_images import ImageFault, Look
from hvkf.stages.render_images import ImageFacts, ImageFolders, image_facts, read_image_bytes
from hvkf.storage import FolderStore, file_sha256
from tests.test_keyframe_images import encoded, picture


def test_images_are_named_by_content_and_faults_stand_in_their_place(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(picture()))
    (folder / "same.png").write_bytes(encoded(picture()))
    (folder / "text.png").write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(picture()))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["a.png", "same.png", "text.png", "folder.png", "link.png", "gone.png", "a.png/b"]
    found = image_facts(ImageFolders(str(folder), str(tmp_path)), names)
    facts = ImageFacts(file_sha256(folder / "a.png"), Look(6, 4, "", ""))
    assert found["a.png"] == found["same.png"] == facts
    codes = {name: fault.code for name, fault in found.items() if isinstance(fault, ImageFault)}
    assert codes == {
        "text.png": "unreadable",
        "folder.png": "unreadable",
        "link.png": "outside",
        "gone.png": "missing",
        "a.png/b": "unreadable",
    }


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert read_image_bytes(FolderStore(tmp_path), "b.png") == b"bytes"


def looked_at(folder: Path, *paths: str) -> dict[str, str]:
    """Give the code that each path's failure is recorded under."""
    found = image_facts(ImageFolders(str(folder), str(folder)), paths)
    return {path: fault.code for path, fault in found.items() if isinstance(fault, ImageFault)}


def test_an_odd_path_is_its_own_rows_failure(tmp_path: Path) -> None:
    """Each of these ended the whole manifest with an UnboundLocalError."""
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    names = {
        "x" * 256 + ".png": "unreadable",
        "loop.png": "unreadable",
        "a\0b.png": "unreadable",
        "\ud800.png": "unreadable",
        ".": "outside",
        "": "outside",
        "..": "outside",
        "/".join(["x" * 250] * 17): "unreadable",
        "a.png/x.png": "unreadable",
    }
    assert looked_at(tmp_path, "a.png", *names) == names


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_what_the_system_answers_is_its_own_rows_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(path: Path, flags: int) -> int:
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "a.png").write_bytes(encoded(picture()))
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ImageFault, match=os.strerror(number)[1:]) as caught:
        read_image_bytes(FolderStore(tmp_path), "a.png")
    assert caught.value.code == "unreadable"


def test_no_named_pipe_or_socket_or_device_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
        assert looked_at(tmp_path, "pipe.png", "socket.png", "null.png") == {
            "pipe.png": "unreadable",
            "socket.png": "unreadable",
            "null.png": "outside",
        }
    with pytest.raises(ImageFault, match=r"pipe\.png cannot be read: it is a named pipe"):
        read_image_bytes(FolderStore(tmp_path), "pipe.png")


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    assert looked_at(tmp_path, "a.png") == {"a.png": "too-large"}


def test_links_that_lead_out_are_followed_where_they_were_laid_on_purpose(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "blob").write_bytes(encoded(picture()))
    (tmp_path / "in" / "a.png").symlink_to("../blob")
    assert looked_at(tmp_path / "in", "a.png") == {"a.png": "outside"}
    folders = ImageFolders(str(tmp_path / "in"), str(tmp_path / "in"), follow_links=True)
    facts = image_facts(folders, ["a.png"])["a.png"]
    assert isinstance(facts, ImageFacts)
    assert facts.sha256 == file_sha256(tmp_path / "blob")


def test_a_name_of_another_unicode_form_is_the_image_that_looks_alike(tmp_path: Path) -> None:
    written, there = (unicodedata.normalize(form, "été/é.png") for form in ("NFC", "NFD"))
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).write_bytes(encoded(picture()))
    assert looked_at(tmp_path, written, there) == {}
    assert looked_at(tmp_path, "autre/é.png") == {"autre/é.png": "missing"}
