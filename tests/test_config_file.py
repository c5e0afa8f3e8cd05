"""Settings: YAML, overrides, and sentences that name the key and the fix."""

import itertools
import operator
import os
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


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("--render.negative_prompt=a: b: c", "a: b: c"),
        ("--render.negative_prompt=[x", "[x"),
        ('--render.negative_prompt="', '"'),
        ("--render.negative_prompt=*x", "*x"),
        ("--render.negative_prompt=!!int x", "!!int x"),
        ("--render.negative_prompt= a #2", " a #2"),
        ("--render.negative_prompt=null", "null"),
        ("--experiment.run_id=2026-11-29", "2026-11-29"),
        ("--experiment.run_id=007", "007"),
        ("--experiment.run_id=null", None),
        ("--workspace=/x/hash1 #2", "/x/hash1 #2"),
        ("--render.lora=none", "none"),
        ("--hparams.learning_rate=1e-4", 1e-4),
        ("--hparams.max_train_steps=null", None),
        ("--hparams.max_train_steps=None", None),
        ("--hparams.ema.use_ema=False", False),
        ("--network.init_lora_weights=gaussian", "gaussian"),
        ("--network.init_lora_weights=false", False),
        ("--experiment.trackers=wandb", ("wandb",)),
        ("--experiment.trackers=[wandb, tensorboard]", ("wandb", "tensorboard")),
        ("--experiment.trackers=", ()),
        ("--hparams.optimizer_args=[eps=1e-8, 'b=(0.9, 0.95)']", ("eps=1e-8", "b=(0.9, 0.95)")),
        ("--validation.sigmas=[0.1, 1e-1]", (0.1, 0.1)),
        ("--data.local=[2026-11-29, a]", ("2026-11-29", "a")),
        ("--data.local=null", None),
        ("--jobs.train.node_selector={a: 1, b: no}", {"a": "1", "b": "no"}),
        ("--jobs.train.env.A=no", "no"),
    ],
)
def test_a_settings_own_type_decides_how_its_text_is_read(override: str, value: object) -> None:
    found: object = load_config(None, [override])
    for name in override.removeprefix("--").partition("=")[0].split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_whole_section_may_be_given_in_flow_style() -> None:
    config = load_config(None, ["--hparams.ema={use_ema: false, ema_decay: 0.5}"])
    assert (config.hparams.ema.use_ema, config.hparams.ema.ema_decay) == (False, 0.5)


def test_a_date_in_a_file_is_text(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("experiment: {run_id: 2026-11-29}")
    assert load_config(file).experiment.run_id == "2026-11-29"


def test_an_override_of_one_section_leaves_its_aliases_alone(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("jobs: {cache: &pods {workers: 2}, encode: *pods}")
    jobs = load_config(file, ["--jobs.cache.workers=4"]).jobs
    assert (jobs.cache.workers, jobs.encode.workers) == (4, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workspace: a\ncache: {}\nworkspace: b", "'workspace' is given twice .again in line 3"),
        ("render: {fps: 1,\n  fps: 2}", "'fps' is given twice .again in line 2"),
        ("workspace: !!bool x", "a value is not of its tag"),
        ("[" * 1000, "nested deeper"),
        ("a: &a [*a]", "an alias stands within what it names"),
        ("x" * 300_000, "larger than 256 KiB"),
        ("render: {guidance: .nan}", "render.guidance is nan"),
        ('workspace: "a\\0b"', "NUL"),
        ("- 1\n- 2", "must hold a mapping"),
    ],
)
def test_hostile_yaml_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(file)
    assert len(str(caught.value)) < 600


def test_an_alias_bomb_is_refused_before_it_is_written_out(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = ["a: &a [x, x]", *(f"{n}: &{n} [*{o}, *{o}]" for o, n in itertools.pairwise(names))]
    file = tmp_path / "c.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases and values come to more than"):
        load_config(file)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "loop"])
def test_what_is_no_file_of_settings_is_refused(tmp_path: Path, kind: str) -> None:
    file = Path("/dev/zero") if kind == "device" else tmp_path / "c.yaml"
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    said = {"folder": "is a folder", "loop": "cannot be read"}.get(kind, "no regular file")
    with pytest.raises(ConfigError, match=said):
        load_config(file)


def test_long_values_are_shortened_and_few_errors_are_told(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    keys = [key for key in known_keys() if key.startswith("render.")]
    file.write_text(yaml.safe_dump({"render": {key[7:]: ["x" * 99] * 9 for key in keys}}))
    with pytest.raises(ConfigError, match=r"and \d+ more$") as caught:
        load_config(file)
    assert len(str(caught.value)) < 700


def test_an_environment_variable_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["--jobs.train.env={A: [hush]}"])
    assert "hush" not in str(caught.value)
    assert "jobs.train.env.A" in str(caught.value)


PATHS = [
    *("workspace", "ingest.metadata", "ingest.base_dir", "data.local", "data.remote"),
    *("experiment.output_dirpath", "model.pretrained_model_name_or_path", "network.lora_weights"),
    *("render.manifest", "render.allowed_folders", "render.lora", "evaluate.extras_weights"),
]


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    "key", ["workspace", "ingest.metadata", "model.pretrained_model_name_or_path"]
)
def test_a_path_that_is_needed_is_not_blank(key: str, value: str) -> None:
    """`--workspace=$UNSET` worked in the current folder."""
    with pytest.raises(ConfigError, match=f"{key} is '{value}', but a path is needed"):
        load_config(None, [f"--{key}={value}"])


@pytest.mark.parametrize("key", PATHS)
def test_a_tilde_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_config(None, [f"--{key}=~/x"])
    found = operator.attrgetter(key)(config)
    assert found in ("/home/somebody/x", ("/home/somebody/x",))
    with pytest.raises(ConfigError, match=r"no home folder ~nobody-here: write .* \./~nobody-here"):
        load_config(None, [f"--{key}=~nobody-here/x"])
