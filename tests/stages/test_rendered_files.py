"""Storing what was rendered: the first bytes under a name stay."""

from pathlib import Path

import numpy as np
from PIL import Image

from hvkf.stages.rendered_files import put_bytes, put_frame, put_video
from hvkf.storage import FolderStore, file_sha256
from hvkf.video import probe

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)


def test_what_an_earlier_attempt_left_stays_and_is_what_the_entry_says(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    first = put_bytes(store, "renders/x", "video.json", b"first")
    again = put_bytes(store, "renders/x", "video.json", b"other bytes")
    assert again == first
    assert store.read("renders/x/video.json") == b"first"
    assert (first.size, first.sha256) == (5, file_sha256(tmp_path / "renders/x/video.json"))


def test_entries_name_the_stored_bytes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    entries = [
        put_video(store, "x", "video.mp4", FRAMES, fps=24, crf=18, metadata={"comment": "c"}),
        put_frame(store, "x", "first.png", FRAMES[0]),
        put_frame(store, "x", "first.jpg", FRAMES[0]),
    ]
    for entry in entries:
        assert entry.sha256 == file_sha256(tmp_path / "x" / entry.name)
        assert entry.size == (tmp_path / "x" / entry.name).stat().st_size
    assert probe(tmp_path / "x" / "video.mp4").num_frames == 5
    with Image.open(tmp_path / "x" / "first.png") as png:
        assert np.array_equal(np.asarray(png), FRAMES[0])
    with Image.open(tmp_path / "x" / "first.jpg") as jpeg:
        assert (jpeg.format, jpeg.size) == ("JPEG", (48, 32))
