"""The reference's configuration file and overrides, as its users type them."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from hvkf.config import Config
from hvkf.config_file import load_config
from hvkf.errors import BadInput, ConfigError
from hvkf.model.lora_file import read_lora
from hvkf.stages import train as train_stage
from hvkf.storage import FolderStore
from hvkf.training.items import find_sources
from hvkf.training.optimizers import make_optimizer
from hvkf.training.tracking import accelerated
from tests.commands import run_command
from tests.reference_caches import BY_THE_REFERENCE, latent_record, write_latents_cache
from tests.training.latents import train_config
from tests.workspaces import GOLDEN, TINY

FILE = GOLDEN / "reference_config_defaults.yaml"
OVERRIDES = ["--experiment.run_id=r", "--network.lora_rank=64", "--hparams.ema.use_ema=False"]


def test_its_file_and_overrides_load_with_every_value_kept() -> None:
    config = load_config(FILE, OVERRIDES)
    assert (config.experiment.run_id, config.network.lora_rank) == ("r", 64)
    assert config.hparams.ema.use_ema is False
    assert config.workspace == "./i2v_outputs"
    loaded = load_config(FILE).model_dump(mode="json")
    for section, values in yaml.safe_load(FILE.read_text()).items():
        assert_contains(loaded[section], values, section)


def assert_contains(found: dict[str, object], wanted: dict[str, object], place: str) -> None:
    for name, value in wanted.items():
        own = found[name]
        if isinstance(value, dict):
            assert isinstance(own, dict)
            assert_contains(own, value, f"{place}.{name}")
        elif isinstance(own, float):
            # YAML reads 2e-4 as a text.
            assert own == float(str(value)), f"{place}.{name}"
        else:
            assert own == value, f"{place}.{name}"


def test_our_defaults_are_its_shipped_values() -> None:
    shipped, own = load_config(FILE), Config()
    for section in ("network", "checkpointing", "ddp_kwargs"):
        assert getattr(shipped, section) == getattr(own, section)
    assert shipped.hparams == own.hparams


def on_a_cpu(folder: Path, *more: str) -> list[str]:
    """What its shipped values need besides, to run on the tiny checkpoint in seconds."""
    return [
        f"--experiment.output_dirpath={folder / 'outputs'}",
        f"--model.pretrained_model_name_or_path={TINY}",
        "--data.dataloader_kwargs.num_workers=0",
        "--hparams.max_train_steps=2",
        *more,
    ]


def test_its_training_command_trains_on_its_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = [str(BY_THE_REFERENCE / f"32x32x5_{rank:02d}") for rank in (0, 1)]
    run_command(
        *("train", "plan", "--config_path", str(FILE), *OVERRIDES, "--network.lora_rank=4"),
        *on_a_cpu(tmp_path, f"--data.local={folders}"),
    )
    planned = json.loads(capsys.readouterr().out)
    assert planned["workspace"] == str(tmp_path / "outputs")
    for step in ("run", "commit"):
        run_command(
            *("train", step, "--workspace", planned["workspace"], "--plan", planned["plan"])
        )
    assert "run r: 2 steps over 4 samples" in capsys.readouterr().out
    assert read_lora(tmp_path / "outputs" / "runs" / "r" / "step-00000002").alpha == 128


def test_data_remote_is_read_which_the_reference_ignores(tmp_path: Path) -> None:
    far = write_latents_cache(tmp_path / "far" / "32x32x5_00", [latent_record(1)])
    config = load_config(FILE, [*OVERRIDES, f"--data.remote={far}"])
    store = FolderStore(tmp_path / "workspace")
    assert find_sources(config, store)["folders"] == [{"url": str(far), "cache": ""}]
    missing = load_config(FILE, on_a_cpu(tmp_path, f"--data.remote={tmp_path / 'none'}"))
    with pytest.raises(BadInput, match=r"none has no index\.json"):
        train_stage.plan(missing, store)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("torch.optim.AdamW", "AdamW"), ("adamw", "AdamW"), ("optimi-stableadamw", "StableAdamW")],
)
def test_the_optimizer_that_its_own_default_names_works(name: str, kind: str) -> None:
    config = load_config(FILE, [f"--hparams.optimizer_type={name}"])
    weight = torch.nn.Parameter(torch.ones(2))
    arguments = config.hparams.optimizer_args
    optimizer = make_optimizer(config.hparams.optimizer_type, [weight], 1e-2, arguments)
    assert type(optimizer).__name__ == kind
    weight.sum().backward()
    optimizer.step()
    assert not torch.equal(weight.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--hparams.flow_match.timestep_sampling=sigma", "write logit_normal"),
        ("--hparams.flow_match.weighting_scheme=sigma", "'none', 'sigma_sqrt' or 'cosmap'"),
        ("--network.init_lora_weights=pissa_niter_4", "network.init_lora_weights"),
        ("--data.prompt_embed_key=x", "did you mean data.prompt_embeds_key"),
    ],
)
def test_what_was_broken_or_is_mistyped_says_what_to_write(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(FILE, [override])


def test_its_dumped_file_with_keys_that_are_null_loads(tmp_path: Path) -> None:
    """The reference writes its settings as it had them, with those that it never reads."""
    settings = yaml.safe_load(FILE.read_text())
    settings["data"].update(choose=None, repeat=None)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert load_config(file) == load_config(FILE)


@pytest.mark.parametrize("key", ["choose", "repeat"])
def test_its_keys_without_effect_are_refused_when_they_are_set(key: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{{key}: 0.5}}")
    with pytest.raises(ConfigError, match=f"there is no setting data.{key}"):
        load_config(file)


@pytest.mark.parametrize(
    "text",
    [
        "data: {batch_size: null, dataloader_kwargs: {num_workers: null}}",
        "data:\nhparams:\n",
        "ingest: {dataset: null}\nworkspace: null\n",
        "jobs: {train: {env: null}}",
    ],
)
def test_null_means_unset(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path / "config.yaml") == Config()


def test_null_is_kept_where_it_is_a_value_and_refused_for_what_is_no_setting(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("hparams: {num_train_epochs: null, max_train_steps: 5}")
    assert load_config(file).hparams.num_train_epochs is None
    file.write_text("hparams: {learning_rat: null}")
    with pytest.raises(ConfigError, match=r"there is no setting hparams.learning_rat"):
        load_config(file)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_backend_of_its_process_groups_does_not_disturb_a_process_alone(
    backend: str, tmp_path: Path
) -> None:
    config = train_config(tmp_path, ddp_kwargs={"backend": backend})
    with accelerated(config, tmp_path / "logs") as (accelerator, _):
        assert accelerator.num_processes == 1
