"""The extra figures, by the real networks with random weights: nothing can be downloaded here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from hvkf.errors import BadInput
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.settings.evaluation import EvaluateConfig
from hvkf.shapes import render_clip
from hvkf.stages.evaluate_extras import Extras
from hvkf.stages.evaluate_weights import check_extras, frechet_distance

CPU = torch.device("cpu")


class I3d(torch.nn.Module):
    """Called as the TorchScript of I3D is; the features are means over the video."""

    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.mean(dim=[2, 3, 4])


def video(index: int) -> torch.Tensor:
    return torch.from_numpy(render_clip(0, index, 5)[0])


def test_missing_weights_are_all_named_with_their_places(tmp_path: Path) -> None:
    check_extras(EvaluateConfig())
    with pytest.raises(BadInput, match=r"evaluate\.extras_weights"):
        check_extras(EvaluateConfig(extras=("lpips",)))
    wanted = EvaluateConfig(extras=("lpips", "fvd"), extras_weights=str(tmp_path))
    with pytest.raises(BadInput, match=r"lpips needs .*alexnet-owt.*; fvd needs .*i3d_torchscript"):
        check_extras(wanted)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self._marker,)


def test_weights_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    torch.save({"x": _Bomb(tmp_path / "ran")}, file)
    with pytest.raises(BadInput, match="lpips cannot read torchvision's AlexNet weights"):
        Extras(["lpips"], tmp_path, CPU)
    assert not (tmp_path / "ran").exists()


def test_lpips_is_0_for_equal_videos_and_grows_with_their_distance(tmp_path: Path) -> None:
    from torchvision.models import alexnet

    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(alexnet().state_dict(), tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth")
    check_extras(EvaluateConfig(extras=("lpips",), extras_weights=str(tmp_path)))
    extras = Extras(["lpips"], tmp_path, CPU)
    assert extras.figures(video(0), video(0), "")["lpips"] == 0
    assert extras.figures(video(0), video(1), "")["lpips"] > 0
    assert extras.video_features(video(0)) == ()


def test_clip_scores_a_video_against_its_prompt(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    build_tiny_checkpoint(tmp_path / "tiny")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tiny" / "tokenizer_2")
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **small,
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "clip")
    check_extras(EvaluateConfig(extras=("clip",), extras_weights=str(tmp_path)))
    score = Extras(["clip"], tmp_path, CPU).figures(video(0), video(0), "a red disc")["clip"]
    assert 0 <= score <= 100


def test_features_of_videos_are_taken_by_the_torchscript_network(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="torch.jit.script"):  # I3D is published as TorchScript
        torch.jit.script(I3d()).save(str(tmp_path / "i3d_torchscript.pt"))
    features = Extras(["fvd"], tmp_path, CPU).video_features(video(2))
    assert features == pytest.approx(video(2).float().mean(dim=(0, 1, 2)).tolist(), rel=1e-5)


def test_the_distance_of_normal_sets_is_that_of_their_means_and_widths() -> None:
    draws = np.random.default_rng(0)
    true = draws.normal(0, 1, (20_000, 2))
    made = draws.normal([3, 0], 2, (20_000, 2))
    # |3|^2 + 2 (1 + 4 - 2 sqrt(4)) = 11
    assert frechet_distance(made.tolist(), true.tolist()) == pytest.approx(11, rel=0.03)
    assert frechet_distance(true.tolist(), true.tolist()) == pytest.approx(0, abs=1e-6)
    assert frechet_distance([[1.0]], [[1.0], [2.0]]) is None
