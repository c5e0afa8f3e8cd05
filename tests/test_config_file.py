"""Settings: YAML, overrides, and sentences that name the key and the fix."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hvkf.config import Config
from hvkf.config_file import check_config, known_keys, load_config
from hvkf.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_file_loads(file: Path) -> None:
    load_config(file)


def test_there_are_shipped_files() -> None:
    assert CONFIGS


def test_overrides_come_after_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("network: {lora_rank: 4, lora_alpha: 8}\n")
    config = load_config(file, ["--network.lora_rank=64", "--hparams.ema.use_ema=False"])
    assert (config.network.lora_rank, config.network.lora_alpha) == (64, 8)
    assert config.hparams.ema.use_ema is False


def test_a_list_may_be_written_with_commas() -> None:
    config = load_config(None, ["--cache.bucket_reso=64x64x17,96x64x33"])
    assert config.cache.bucket_reso == ("64x64x17", "96x64x33")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "--cache.headframe=1",
            "there is no setting cache.headframe: did you mean cache.head_frame",
        ),
        ("--lora_rank=4", "did you mean network.lora_rank"),
        ("--network.lora_rank=none", "network.lora_rank is 'none'"),
        ("--hparams.flow_match.timestep_sampling=sigma", "write logit_normal"),
        ("--network.lora_rank.x=1", "is a value, not a section|lora_rank"),
        ("cache.head_frame=1", "is not an override"),
        ("--cache", "is not an override"),
    ],
)
def test_a_wrong_setting_is_named_with_the_fix(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(None, ["--network.lora_alpha=1", override])
    assert caught.value.exit_code == 65
    assert "\n" not in str(caught.value)


def test_a_fault_names_where_its_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("network: {lora_rank: none}\nrender: {speed: {taylorseer: 2}}\n")
    overrides = ["--hparams.packed_weights=int4", "--render.speed.first_block_cache=0.1"]
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    assert f"{file}: network.lora_rank is 'none'" in str(caught.value)
    assert "the command line: hparams.packed_weights is 'int4'" in str(caught.value)
    assert f"{file} with the command line: render.speed" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("- 1", "must hold a mapping"), ("a: [", "is not YAML"), ("!!python/object:os.x {}", "YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(file)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file 'nowhere\.yaml'"):
        load_config(Path("nowhere.yaml"))


def test_the_references_output_folder_is_the_workspace_unless_one_is_set() -> None:
    assert load_config(None, ["--experiment.output_dirpath=out"]).workspace == "out"
    both = ["--experiment.output_dirpath=out", "--workspace=w"]
    assert load_config(None, both).workspace == "w"


def test_a_configuration_survives_the_way_to_a_worker() -> None:
    config = load_config(None, ["--experiment.output_dirpath=out", "--ingest.target_fps=12"])
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("key", known_keys())
def test_every_setting_says_what_it_is(key: str) -> None:
    model: type = Config
    for name in key.split("."):
        field = model.model_fields[name]  # type: ignore[attr-defined]
        model = field.annotation
    described = field.description or getattr(model, "__doc__", None)
    assert described


@given(st.sampled_from(known_keys()), st.text(alphabet="abcdefghij_", min_size=1, max_size=8))
def test_an_unknown_key_is_always_refused(key: str, suffix: str) -> None:
    wrong = f"{key}{suffix}"
    if wrong in known_keys():
        return
    with pytest.raises(ConfigError):
        load_config(None, [f"--{wrong}=1"])


def test_yaml_of_the_defaults_is_the_defaults() -> None:
    text = yaml.safe_dump(Config().model_dump(mode="json"))
    assert check_config(yaml.safe_load(text), "here") == Config()


def test_an_unquoted_no_is_no_mixed_precision() -> None:
    assert load_config(None, ["--hparams.mixed_precision=no"]).hparams.mixed_precision == "no"
