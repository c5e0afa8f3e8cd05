"""A row of the table whose video cannot be opened is its own failure, and the rest goes on."""

import errno
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.stages import cache, ingest
from hvkf.stages.ingest_sources import SourceError, local_file, source_stat
from hvkf.storage import FolderStore
from tests.workspaces import small_config, write_clip, write_table

ODD_NAMES = {
    "a.mp4/x.mp4": "unreadable-file",  # NotADirectoryError ended the ingest
    "x" * 260 + ".mp4": "unreadable-file",
    "/".join(["x" * 250] * 17): "unreadable-file",
    "pipe.mp4": "unreadable-file",
    "loop.mp4": "unreadable-file",
    "folder": "unreadable-file",
    "gone.mp4": "missing",
}


def odd_folder(folder: Path) -> Path:
    """One good video, and names behind which there is none; returns the table."""
    rows = [("fine", "a.mp4"), *(("odd", name) for name in ODD_NAMES)]
    table = write_table(folder, rows)
    write_clip(folder / "a.mp4", 1)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "folder").mkdir()
    return table


def ingested(config: Config, store: FolderStore) -> dict[str, str]:
    """Ingest, and give the code of each source's failure."""
    plan = ingest.plan(config, store)
    ingest.run(plan, store, plan.parts)
    summary = ingest.commit(plan, store)
    found = (line.removeprefix("not taken: ") for line in summary.text.splitlines()[1:])
    return {line.partition(": ")[0]: line.rpartition("[")[2].rstrip("]") for line in found}


def test_an_odd_path_is_its_own_rows_failure(tmp_path: Path) -> None:
    table = odd_folder(tmp_path / "data")
    config = small_config(tmp_path, table, ingest={"max_failed_fraction": 1.0})
    assert ingested(config, FolderStore(tmp_path / "workspace")) == ODD_NAMES


@pytest.mark.parametrize(("written", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_of_another_unicode_form_is_the_file_that_looks_alike(
    tmp_path: Path, written: Literal["NFC", "NFD"], there: Literal["NFC", "NFD"]
) -> None:
    name = "vidéos/vidéo.mp4"
    table = write_table(tmp_path / "data", [("fine", unicodedata.normalize(written, name))])
    write_clip(tmp_path / "data" / unicodedata.normalize(there, name), 1)
    config, store = small_config(tmp_path, table), FolderStore(tmp_path / "workspace")
    assert ingested(config, store) == {}
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    assert "failed" not in cache.commit(plan, store).text


def test_a_path_with_a_detour_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", [("fine", "videos/../videos/a.mp4")])
    write_clip(tmp_path / "data" / "videos" / "a.mp4", 1)
    config, store = small_config(tmp_path, table), FolderStore(tmp_path / "workspace")
    assert ingested(config, store) == {}
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    assert "failed" not in cache.commit(plan, store).text


def test_what_the_system_refuses_today_is_tried_again_tomorrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("fine", "a.mp4"), ("fine", "b.mp4")]
    table = write_table(tmp_path / "data", rows)
    for number, (_, name) in enumerate(rows):
        write_clip(tmp_path / "data" / name, number)
    config = small_config(tmp_path, table, ingest={"max_failed_fraction": 1.0})
    store = FolderStore(tmp_path / "workspace")
    really_open = os.open

    def fail(path: str | Path, *others: int) -> int:
        if str(path).endswith("b.mp4"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return really_open(path, *others)

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", fail)
        assert ingested(config, store) == {"b.mp4": "unreadable-file"}
    assert ingested(config, store) == {}


def test_a_video_that_cannot_be_opened_any_more_fails_alone_when_it_is_cached(
    tmp_path: Path,
) -> None:
    rows = [("fine", "a.mp4"), ("odd", "b.mp4"), ("odd", "in/c.mp4")]
    table = write_table(tmp_path / "data", rows)
    for number, (_, name) in enumerate(rows):
        write_clip(tmp_path / "data" / name, number)
    config = small_config(tmp_path, table, cache={"max_failed_fraction": 1.0})
    store = FolderStore(tmp_path / "workspace")
    assert ingested(config, store) == {}
    (tmp_path / "data" / "b.mp4").unlink()
    os.mkfifo(tmp_path / "data" / "b.mp4")
    shutil.rmtree(tmp_path / "data" / "in")
    (tmp_path / "data" / "in").write_text("no folder")
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    text = cache.commit(plan, store).text
    assert "failed: b.mp4" in text
    assert "named pipe" in text
    assert "failed: in/c.mp4" in text
    assert "failed: a.mp4" not in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300 + ".csv", "cannot be read: file name too long"),
        ("pipe.csv", "cannot be read: it is a named pipe"),
        ("folder.csv", "There is no table"),
        ("file/t.csv", "is a file: name a folder"),
    ],
)
def test_a_table_that_no_file_can_be_is_refused_in_a_sentence(
    tmp_path: Path, name: str, words: str
) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("x")
    config = small_config(tmp_path, tmp_path / name)
    with pytest.raises(BadInput, match=words) as caught:
        ingest.plan(config, FolderStore(tmp_path / "workspace"))
    assert len(str(caught.value)) < 600


def test_a_path_that_leaves_the_folder_is_outside(tmp_path: Path) -> None:
    sources = FolderStore(tmp_path)
    assert source_stat(sources, "../a.mp4") == (-1, "outside")
    with pytest.raises(SourceError, match="leaves the base folder"), local_file(sources, "../a"):
        pytest.fail("it was opened")


class Elsewhere(FolderStore):
    """Videos that do not lie on this machine, as those of S3 do not."""

    def local_path(self, path: str) -> Path | None:
        return None

    def download(self, path: str, file: Path) -> None:
        file.write_bytes(path.encode())


def test_a_key_longer_than_a_local_name_is_fetched_under_a_short_one(tmp_path: Path) -> None:
    long = "é" * 200 + ".mp4"
    with local_file(Elsewhere(tmp_path), long) as file:
        assert file.read_bytes() == long.encode()
        assert file.suffix == ".mp4"
    assert not file.exists()


def test_a_video_behind_a_link_that_leads_out_is_refused_unless_links_are_laid_on_purpose(
    tmp_path: Path,
) -> None:
    rows = [("fine", "a.mp4"), ("linked", "b.mp4"), ("linked", "folder/c.mp4")]
    table = write_table(tmp_path / "data", rows)
    for number, name in enumerate(["data/a.mp4", "blobs/b", "other/c.mp4"]):
        write_clip(tmp_path / name, number)
    (tmp_path / "data" / "b.mp4").symlink_to("../blobs/b")  # as Hugging Face's caches do
    (tmp_path / "data" / "folder").symlink_to("../other")
    store = FolderStore(tmp_path / "workspace")
    settings: dict[str, object] = {"max_failed_fraction": 1.0, "find_near_duplicates": False}
    config = small_config(tmp_path, table, ingest=settings)
    assert ingested(config, store) == {"b.mp4": "outside", "folder/c.mp4": "outside"}
    config = small_config(tmp_path, table, ingest={**settings, "follow_links": True})
    assert ingested(config, store) == {}
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    assert "failed" not in cache.commit(plan, store).text


def test_a_video_that_became_a_link_out_of_the_folder_is_not_cached(tmp_path: Path) -> None:
    rows = [("fine", "a.mp4"), ("fine", "b.mp4")]
    table = write_table(tmp_path / "data", rows)
    for number, (_, name) in enumerate(rows):
        write_clip(tmp_path / "data" / name, number)
    config = small_config(tmp_path, table, cache={"max_failed_fraction": 1.0})
    store = FolderStore(tmp_path / "workspace")
    assert ingested(config, store) == {}
    (tmp_path / "data" / "b.mp4").rename(tmp_path / "elsewhere.mp4")
    (tmp_path / "data" / "b.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    plan = cache.plan(config, store)
    cache.run(plan, store, plan.parts)
    text = cache.commit(plan, store).text
    assert "failed: b.mp4" in text
    assert "[outside]" in text
