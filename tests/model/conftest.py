"""The tiny golden checkpoint, loaded once, and golden data of the reference."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from safetensors.torch import load_file

from hvkf.model.loading import TextEncoders, load_text_encoders, load_transformer, load_vae

GOLDEN_FOLDER = Path(__file__).parents[1] / "golden"
TINY_FOLDER = GOLDEN_FOLDER / "tiny_hunyuan"


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """Read a golden safetensors file by its stem."""

    def read(stem: str) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = load_file(GOLDEN_FOLDER / f"{stem}.safetensors")
        return tensors

    return read


@pytest.fixture(scope="session")
def golden_captions() -> list[str]:
    captions: list[str] = json.loads((GOLDEN_FOLDER / "text.json").read_text(encoding="utf-8"))
    return captions


@pytest.fixture(scope="session")
def loaded_transformer() -> HunyuanVideoTransformer3DModel:
    return load_transformer(TINY_FOLDER, dtype=torch.float32)


@pytest.fixture
def transformer(
    loaded_transformer: HunyuanVideoTransformer3DModel,
) -> HunyuanVideoTransformer3DModel:
    """A widened transformer that the test may change."""
    return copy.deepcopy(loaded_transformer)


@pytest.fixture(scope="session")
def vae() -> AutoencoderKLHunyuanVideo:
    return load_vae(TINY_FOLDER, dtype=torch.float32)


@pytest.fixture(scope="session")
def encoders() -> TextEncoders:
    return load_text_encoders(TINY_FOLDER, dtype=torch.float32)


@pytest.fixture(scope="session")
def transformer_inputs(golden: Callable[[str], dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Arguments of the transformer's forward, one row."""
    inputs: dict[str, Any] = {
        name.removeprefix("in."): value
        for name, value in golden("transformer").items()
        if name.startswith("in.")
    }
    return {**inputs, "return_dict": False}


@pytest.fixture(scope="session")
def made_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint and a LoRA file that another process made, with another hash seed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    script = (
        "import sys, torch\n"
        "from hvkf.model.lora_file import read_lora, save_lora\n"
        "from hvkf.model.tiny import build_tiny_checkpoint\n"
        "target, lora = sys.argv[1:]\n"
        "build_tiny_checkpoint(target + '/checkpoint')\n"
        "save_lora(read_lora(lora).weights, target, alpha=8, extra={'step': 3, 'run': 'r'})\n"
    )
    lora = str(GOLDEN_FOLDER / "lora_r4_a8.sft")
    subprocess.run([sys.executable, "-c", script, str(folder), lora], check=True)
    return folder


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest expected value."""
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    return float(difference)
