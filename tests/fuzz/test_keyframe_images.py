"""Damaged images, and paths that no image can have."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from hvkf.keyframe_images import ImageFault, decode_keyframe, look_at
from hvkf.stages.render_images import ImageFolders, image_facts
from tests import icc
from tests.fuzz.bounds import fuzzed, in_bounds
from tests.fuzz.mutations import mutated

KINDS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {},
    "MPO": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
    "PPM": {},
    "AVIF": {"speed": 10, "max_threads": 1},
}
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"),
    "GIF": ("L", "P"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
PICTURES = [(kind, mode) for kind in KINDS for mode in MODES.get(kind, ("RGB",))]


@cache
def valid(kind: str, mode: str) -> bytes:
    """A small picture with EXIF, in one of the kinds and modes that people's files have."""
    noise = np.random.default_rng(7).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.frombytes("LAB", image.size, noise.tobytes())
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    profile = {"CMYK": icc.cmyk(), "L": icc.grey(1.0)}.get(mode, icc.display_p3())
    image.save(sink, kind, exif=exif, icc_profile=profile, **KINDS[kind])
    return sink.getvalue()


pictures = st.sampled_from(PICTURES).map(lambda kind_and_mode: valid(*kind_and_mode))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of damage that Pillow reads around
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@fuzzed(1200)
@given(mutated(pictures))
@example(valid("AVIF", "RGB")[:-10] + bytes(10))
def test_a_damaged_image_gives_a_keyframe_or_a_fault(data: bytes) -> None:
    with in_bounds():
        look_at(data, "in/a.png")
    with in_bounds():
        assert decode_keyframe(data, "in/a.png", 32, 16).shape == (16, 32, 3)


names = st.text(st.characters(), min_size=1, max_size=12)
odd_names = st.sampled_from(
    [".", "..", "~", "~bob", "", "/", "a" * 256, "a" * 5000, "\0", "\ud800", "a.png", "folder"]
)
paths = st.lists(names | odd_names, min_size=1, max_size=5).map("/".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.png").write_bytes(valid("PNG", "RGB"))
    (folder / "folder").mkdir()
    (folder / "folder" / "loop").symlink_to("loop")
    return folder


@fuzzed(480)
@given(paths=st.lists(paths | paths.map("workspace:{}".format), min_size=1, max_size=5))
@example(paths=["a" * 256])
@example(paths=["."])
@example(paths=["folder/loop"])
@example(paths=["a.png/x.png"])
@example(paths=["a\0.png"])
def test_an_odd_path_is_the_fault_of_its_own_row(folder: Path, paths: list[str]) -> None:
    with in_bounds():
        found = image_facts(ImageFolders(str(folder), str(folder)), [*paths, "a.png"])
    assert not isinstance(found["a.png"], ImageFault)
    assert found.keys() == {*paths, "a.png"}
    faults = [str(fault) for fault in found.values() if isinstance(fault, ImageFault)]
    assert all(len(fault) < 600 for fault in faults)
