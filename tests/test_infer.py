"""The reference's inference command: one video from two images, all of it from the seed."""

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hvkf import infer as infer_module
from hvkf.errors import BadInput, ConfigError
from hvkf.infer import Inferred, Request, infer
from hvkf.model.renderer import Renderer
from hvkf.resize import resize_to_cover
from hvkf.settings.experiment import ModelConfig
from hvkf.storage import FolderStore
from hvkf.video import decode_frames, probe
from tests.commands import run_command
from tests.finished_runs import write_run
from tests.workspaces import GOLDEN, TINY

LORA = str(GOLDEN / "lora_r4_a8.sft")
MODEL = ModelConfig(pretrained_model_name_or_path=str(TINY), attention="sdpa")


def write_image(file: Path, seed: int, width: int = 90, height: int = 70) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return write_image(tmp_path / "1.png", 1), write_image(tmp_path / "2.jpg", 2)


def request_of(images: tuple[Path, Path], **changes: Any) -> Request:
    small = Request(
        lora=LORA,
        lora_alpha=8.0,
        frame1=images[0],
        frame2=images[1],
        prompt="a square moves",
        frames=5,
        height=32,
        width=32,
        steps=1,
        guidance=6.0,
        seed=3,
        precision="fp32",
        output=images[0].parent / "out.mp4",
    )
    return small._replace(**changes)


def infer_in(folder: Path, request: Request) -> Inferred:
    return infer(MODEL, FolderStore(folder), request)


def test_the_command_makes_the_video_and_says_where_it_is(
    tmp_path: Path, images: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output.mp4"
    run_command(
        *("infer", "--model", str(TINY), "--lora", LORA, "--lora-alpha", "8"),
        *("--frame1", str(images[0]), "--frame2", str(images[1]), "--prompt", "a square"),
        *("--frames", "17", "--height", "64", "--width", "64", "--steps", "2"),
        *("--guidance", "6.0", "--seed", "123143153", "--output", str(output)),
        *("--precision", "fp32", "--model.attention=sdpa"),
    )
    said = capsys.readouterr()
    assert said.out == f"the video is {output} (seed 123143153, LoRA alpha 8)\n"
    assert "infer: 2 of 2" in said.err
    info = probe(output)
    assert (info.width, info.height, info.num_frames) == (64, 64, 17)
    with av.open(str(output)) as container:
        assert container.streams.video[0].average_rate == 24
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.png", "2.jpg", "output.mp4"]


def test_the_defaults_are_the_references(
    images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[ModelConfig, Request]] = []

    def record(model: ModelConfig, store: FolderStore, request: Request) -> Inferred:
        seen.append((model, request))
        return Inferred(Path("out.mp4"), 0, None)

    monkeypatch.setattr(infer_module, "infer", record)
    first, second = map(str, images)
    run_command("infer", "--lora", LORA, "--frame1", first, "--frame2", second, "--prompt", "p")
    ((model, request),) = seen
    assert model.pretrained_model_name_or_path == "hunyuanvideo-community/HunyuanVideo"
    assert (request.height, request.width, request.frames) == (720, 1280, 77)
    assert (request.steps, request.guidance, request.seed) == (50, 6.0, None)
    assert (request.precision, request.output, request.lora_alpha) == ("bf16", None, None)


def test_the_video_is_the_renderers_of_the_resized_images(
    tmp_path: Path, images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def record(path: Path, frames: Any, fps: int) -> None:
        path.touch()
        written.append(frames)

    monkeypatch.setattr(infer_module, "write_mp4", record)
    infer_in(tmp_path, request_of(images))
    renderer = Renderer(MODEL, FolderStore(tmp_path), "fp32")
    renderer.fuse_lora(Path(LORA), 8.0)
    pair = [resize_to_cover(np.asarray(Image.open(image)), 32, 32) for image in images]
    expected = renderer.render(
        {0: torch.from_numpy(pair[0]), -1: torch.from_numpy(pair[1])},
        "a square moves",
        num_frames=5,
        steps=1,
        guidance=6.0,
        seed=3,
    )
    assert np.array_equal(written[0], expected.numpy())


def test_equal_seeds_give_equal_bytes_and_others_do_not(
    tmp_path: Path, images: tuple[Path, Path]
) -> None:
    request = request_of(images)
    videos = [
        infer_in(tmp_path, request._replace(seed=seed, output=tmp_path / f"{number}.mp4")).video
        for number, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (video.read_bytes() for video in videos)
    assert first == again != other


def test_a_seed_that_is_not_given_is_drawn_and_said(
    tmp_path: Path, images: tuple[Path, Path]
) -> None:
    drawn = infer_in(tmp_path, request_of(images, seed=None, lora="none"))
    known = request_of(images, seed=drawn.seed, lora="none", output=tmp_path / "again.mp4")
    assert drawn.lora_alpha is None
    assert infer_in(tmp_path, known).video.read_bytes() == drawn.video.read_bytes()


def test_the_video_is_named_by_size_length_and_time_as_the_references(
    tmp_path: Path, images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = infer_in(tmp_path, request_of(images, output=None, lora="none"))
    assert made.video.parent == tmp_path
    assert re.fullmatch(r"hv-CL-32x32x5-\d{8}_\d{6}\.mp4", made.video.name)
    assert len(list(decode_frames(made.video, range(5)))) == 5


def test_a_run_of_the_workspace_is_a_lora(tmp_path: Path, images: tuple[Path, Path]) -> None:
    store = FolderStore(tmp_path / "workspace")
    write_run(store, "night")
    made = infer(MODEL, store, request_of(images, lora="run:night", lora_alpha=None))
    assert made.lora_alpha == 8
    with pytest.raises(ConfigError, match="give --workspace"):
        run_command(
            *("infer", "--lora", "run:night", "--prompt", ""),
            *("--frame1", str(images[0]), "--frame2", str(images[1])),
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": 35}, "--frames .* 35 frames.* 33 and 37"),
        ({"frames": 1}, "too few"),
        ({"height": 100}, "100.* 96 and 112"),
        ({"width": 1000}, "1000.* 992 and 1008"),
        ({"steps": 0}, "--steps 0"),
        ({"frame2": Path("none.png")}, r"image none\.png .* no such file"),
        ({"frame1": Path(LORA)}, r"lora_r4_a8\.sft is no image"),
        ({"output": Path("no/such/folder/a.mp4")}, "a folder that is there"),
        ({"lora": "none.sft"}, r"no LoRA 'none\.sft'"),
        ({"lora": "lora.bin"}, r"no LoRA 'lora\.bin'"),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_a_model_is_loaded(
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    images: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(infer_module, "Renderer", None)
    with pytest.raises(BadInput, match=said):
        infer_in(tmp_path, request_of(images, **changes))
    assert not (tmp_path / "out.mp4").exists()
