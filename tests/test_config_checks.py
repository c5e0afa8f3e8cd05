"""What can be known without the data is refused before the first stage."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from hvkf.config_checks import find_obstacles
from hvkf.config_file import load_config
from hvkf.errors import ConfigError
from hvkf.settings.training import LAYER_ENDS
from hvkf.storage import FolderStore
from tests.test_command_errors import Ended
from tests.workspaces import TINY


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    return Ended(capsys)


@pytest.fixture
def good(tmp_path: Path) -> list[str]:
    """Settings that can work."""
    (tmp_path / "metadata.csv").write_text("caption,video_file\n")
    return [
        f"--workspace={tmp_path / 'w'}",
        f"--ingest.metadata={tmp_path / 'metadata.csv'}",
        f"--model.pretrained_model_name_or_path={TINY}",
        "--cache.bucket_reso=32x32x5",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "--hparams.optimizer_type=adam8bit",
            "hparams.optimizer_type is 'adam8bit', but .*use one",
        ),
        ("--hparams.lr_scheduler=cosin", "hparams.lr_scheduler is 'cosin', but .*'cosine'"),
        ("--network.lora_layers=to_qq", "called 'to_qq': use all-linear"),
        ("--network.lora_layers=to_q,x.to_qq", "called 'x.to_qq'"),
        ("--network.target_modules=to_qq", "called 'to_qq'"),
        ("--hparams.optimizer_args=eps", "write key=value"),
        ("--hparams.optimizer_args=eps=f(x)", "write key=value"),
        ("--experiment.trackers=wandbb", "'tensorboard', 'wandb' or 'mlflow'"),
    ],
)
def test_a_name_that_training_would_refuse_is_no_setting(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, [override])


@pytest.mark.parametrize("layers", ["all-linear", "to_q, to_k", "to_out.0", "net.0.proj,net.2"])
def test_names_of_layers_are_taken(layers: str) -> None:
    assert load_config(None, [f"--network.lora_layers={layers}"]).network.lora_layers == layers


def test_the_ends_of_layers_names_are_those_of_the_model() -> None:
    config = HunyuanVideoTransformer3DModel.load_config(str(Path(TINY) / "transformer"))
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel.from_config(config)
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d)
    }
    assert found == set(LAYER_ENDS)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--network.lora_weights=nowhere.safetensors", "nowhere.safetensors"),
        ("--network.lora_weights=run:nothing", "There is no run 'nothing'"),
        ("--network.lora_weights=registry:nothing", "nothing"),
        ("--model.pretrained_model_name_or_path=./nowhere", "no checkpoint folder './nowhere'"),
        ("--model.pretrained_model_name_or_path=workspace:x", "no checkpoint 'workspace:x'"),
        ("--ingest.metadata=nowhere.csv", "ingest.metadata is 'nowhere.csv', which is not there"),
        ("--render.manifest=nowhere.csv", "render.manifest is 'nowhere.csv', which is not there"),
        ("--cache.bucket_reso=32x32", "WxHxF"),
        ("--cache.bucket_reso=", "cache.bucket_reso is empty"),
        ("--hparams.optimizer_type=came", "needs a package: pip install 'hvkf\\[came\\]'"),
        ("--experiment.trackers=mlflow", "pip install 'hvkf\\[mlflow\\]'"),
        ("--jobs.train={executor: kubernetes, image: x}", "which pods do not see"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_first(
    ended: Ended, good: list[str], override: str, said: str, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path / "w")
    (sentence,) = find_obstacles(load_config(None, [*good, override]), store)
    assert re.search(said, sentence)
    assert sentence in ended.refused("run", *good, override)
    assert not (tmp_path / "w").exists()


def test_a_render_with_a_lora_that_is_not_there_is_refused(
    ended: Ended, good: list[str], tmp_path: Path
) -> None:
    manifest = f"--render.manifest={tmp_path / 'metadata.csv'}"
    said = ended.refused("run", *good, manifest, "--render.lora=none.sft", "--cache.bucket_reso=x")
    assert "Nothing was begun." in said
    assert "none.sft" in said
    assert "WxHxF" in said


def test_the_runs_own_lora_need_not_be_there_yet(good: list[str], tmp_path: Path) -> None:
    more = [f"--render.manifest={tmp_path / 'metadata.csv'}", "--experiment.run_id=mine"]
    for lora in ("null", "run:mine", "run:mine/step-00000500", "none"):
        config = load_config(None, [*good, *more, f"--render.lora={lora}"])
        assert list(find_obstacles(config, FolderStore(tmp_path))) == []


def test_doctor_looks_at_the_file_that_it_is_given(
    ended: Ended, good: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("network: {lora_weights: nowhere.sft}\n")
    assert "things" not in ended.refused("doctor", "--config", str(file), *good)
    assert "lacks   " in ended.out
    assert "nowhere.sft" in ended.out
    file.write_text("hparams: {lr_scheduler: cosin}\n")
    assert "hparams.lr_scheduler is 'cosin'" in ended.refused("doctor", "--config", str(file))
    assert ended("doctor", *good) in (0, 65)  # 65 where this machine lacks disk
    assert "has     settings that can work" in ended.out
