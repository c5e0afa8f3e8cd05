"""What VBench-I2V is given: a video for each pair and the image of the same name."""

from pathlib import Path

import pytest
from PIL import Image

from hvkf.errors import BadInput
from hvkf.stages.evaluate_vbench import IMAGES, VIDEOS, export_for_vbench, file_name
from hvkf.storage import FolderStore
from hvkf.video import probe
from tests.commands import run_command
from tests.stages.evaluations import read_metrics


def test_every_pair_has_a_video_and_the_image_of_its_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = finished / "workspace"
    (metrics,) = (workspace / "evals" / "test").rglob("metrics.json")
    evaluation = str(metrics.relative_to(workspace).parent)
    run_command("export-vbench", evaluation, str(tmp_path / "out"), "--workspace", str(workspace))
    assert str(tmp_path / "out" / VIDEOS) in capsys.readouterr().out
    pairs = read_metrics(workspace).pairs
    images = {file.stem: file for file in (tmp_path / "out" / IMAGES).iterdir()}
    videos = sorted((tmp_path / "out" / VIDEOS).iterdir())
    assert {video.stem.removesuffix("-0") for video in videos} == images.keys()
    assert len(videos) == len(pairs)
    for pair in pairs:
        (name,) = [name for name in images if pair.key[:8] in name]
        assert name.startswith(pair.prompt[:10])
        width, height, _ = (int(number) for number in pair.bucket.split("x"))
        with Image.open(images[name]) as image:
            assert image.size == (width, height)
        assert probe(tmp_path / "out" / VIDEOS / f"{name}-0.mp4").width == width


def test_an_evaluation_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no evaluation evals/x/metrics\.json"):
        export_for_vbench(FolderStore(tmp_path), "evals/x", tmp_path / "out")


def test_a_long_prompt_of_any_script_is_a_name_that_a_disk_takes(tmp_path: Path) -> None:
    name = file_name("\u732b/" * 200, "0123456789abcdef")
    (tmp_path / f"{name}-0.mp4").write_bytes(b"")
    assert name.endswith("(01234567)")
    assert file_name("../up", "0123456789abcdef") == ".. up (01234567)"
