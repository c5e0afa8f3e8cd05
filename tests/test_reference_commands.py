"""The commands for those who come from the reference, as they are typed."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from hvkf.cli import app
from hvkf.errors import BadInput, ConfigError
from hvkf.model.lora_file import read_lora
from hvkf.storage import FolderStore
from tests.commands import run_command
from tests.finished_runs import write_run
from tests.reference_caches import BY_THE_REFERENCE, SAME_WITHIN_TINY
from tests.workspaces import GOLDEN, TINY

LORA = str(GOLDEN / "lora_r4_a8.sft")


@pytest.mark.parametrize("command", ["infer", "export-lora", "import-cache"])
def test_each_commands_help_teaches(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "reference" in shown.output
    assert "--workspace" in shown.output


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("diffusers", "pytorch_lora_weights.safetensors"),
        ("reference", "i2v.sft"),
        ("comfyui", "keyframe-lora-comfyui.safetensors"),
    ],
)
def test_a_lora_is_written_in_every_layout_and_its_place_said(
    layout: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("export-lora", LORA, str(tmp_path), "--format", layout, "--lora-alpha", "8")
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / name}\n")
    assert load_file(tmp_path / name)


def test_a_runs_lora_is_fused_in_the_wanted_precision(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "workspace")
    write_run(store, "night")
    run_command(
        *("export-lora", "run:night", str(tmp_path / "fused"), "--format", "fused"),
        *("--model", str(TINY), "--workspace", str(tmp_path / "workspace")),
    )
    (weights,) = (tmp_path / "fused" / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    assert tensors["x_embedder.proj.weight"].shape[1] == 32


def test_a_runs_lora_keeps_its_alpha(tmp_path: Path) -> None:
    write_run(FolderStore(tmp_path / "workspace"), "night")
    run_command(
        *("export-lora", "run:night", str(tmp_path / "out"), "--format", "diffusers"),
        *("--workspace", str(tmp_path / "workspace")),
    )
    assert read_lora(tmp_path / "out").alpha == 8


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lora.bin").write_bytes(b"pickle")
    with pytest.raises(BadInput, match="pickled weights are never loaded"):
        run_command("export-lora", str(tmp_path / "lora.bin"), "out", "--format", "comfyui")
    with pytest.raises(BadInput, match="no LoRA to export"):
        run_command("export-lora", "none", "out", "--format", "comfyui")
    with pytest.raises(ConfigError, match="give --workspace"):
        run_command("export-lora", "run:night", "out", "--format", "comfyui")


def test_a_cache_is_imported_under_the_settings_that_train_will_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(
        *("import-cache", str(BY_THE_REFERENCE), "--dataset", "old"),
        *("--workspace", str(tmp_path / "workspace"), "--same-within", str(SAME_WITHIN_TINY)),
        f"--model.pretrained_model_name_or_path={TINY}",
    )
    assert "3 samples in data set 'old', 3 new" in capsys.readouterr().out
    commits = sorted((tmp_path / "workspace" / "latents").glob("*/commits/old/*.json"))
    # The first says only that others follow.
    assert [commit.name for commit in commits] == ["000000.json", "000001.json"]
