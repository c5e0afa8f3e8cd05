"""Forms: few fields over deployed settings, every one explained, and nothing that pods are."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from flows import forms
from flows.forms import Form, NightlyForm, PipelineForm, RenderForm, TrainForm
from hvkf.config import Config
from hvkf.errors import ConfigError
from hvkf.manifest import read_manifest

ROOT = Path(__file__).parents[2]
FORMS = [
    form
    for form in vars(forms).values()
    if isinstance(form, type) and issubclass(form, Form) and form is not Form
]
SETTINGS = {"ingest": {"dataset": "mine"}, "hparams": {"learning_rate": 1e-3}}


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "default.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.setenv(forms.CONFIGS_VARIABLE, str(tmp_path))
    return tmp_path


def section_field(key: str) -> tuple[type[BaseModel], Any]:
    """Find the setting that a dotted key names."""
    model: type[BaseModel] = Config
    *sections, name = key.split(".")
    for section in sections:
        annotation = model.model_fields[section].annotation
        assert isinstance(annotation, type)
        model = annotation
    return model, model.model_fields[name]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_an_untouched_form_is_the_deployed_settings(form: type[Form]) -> None:
    assert form().to_config() == Config.model_validate(SETTINGS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_field_is_explained_bounded_and_drawn_well(form: type[Form]) -> None:
    for name, field in form.model_json_schema()["properties"].items():
        assert field["title"] != name.replace("_", " ").title() or field["title"] == "Workers"
        assert field["description"]
        assert "anyOf" not in field, "Prefect draws unions badly"
        if field["type"] == "string":
            assert "maxLength" in field or "enum" in field
        else:
            assert {"minimum", "maximum"} <= field.keys()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_form_reaches_no_setting_of_what_pods_are(form: type[Form]) -> None:
    for key in form.SETS.values():
        extra = section_field(key)[1].json_schema_extra
        assert not (extra or {}).get("deployed_only"), key


def test_what_is_filled_in_changes_the_deployed_settings() -> None:
    config = TrainForm(run_id="take: 2".replace(": ", "-"), max_train_steps=7).to_config()
    assert config.experiment.run_id == "take-2"
    assert config.hparams.max_train_steps == 7
    assert config.hparams.learning_rate == 1e-3
    assert PipelineForm(metadata="a: {b}, 'c'\n").to_config().ingest.metadata == "a: {b}, 'c'\n"
    assert NightlyForm(begin_from="scratch").to_config().nightly.begin_from == "scratch"


@pytest.mark.parametrize(
    "values",
    [{"settings": "../etc/passwd"}, {"run_id": "a/b"}, {"max_train_steps": -1}, {"image": "x"}],
    ids=json.dumps,
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainForm.model_validate(values)


PASTED = "id,first_frame,last_frame,prompt\none,workspace:a.png,workspace:b.png,A cat."


@pytest.mark.parametrize(
    ("rows", "suffix"),
    [
        (PASTED, ".csv"),
        ('{"id": "one", "first_frame": "workspace:a", "last_frame": "b", "prompt": "x"}', ".jsonl"),
    ],
)
def test_pasted_rows_become_a_manifest_in_the_workspace(
    configs: Path, rows: str, suffix: str
) -> None:
    settings = {**SETTINGS, "workspace": str(configs / "workspace")}
    (configs / "default.yaml").write_text(yaml.safe_dump(settings))
    config = RenderForm(rows=f"\n{rows}\n").to_config()
    assert config.render.manifest is not None
    file = Path(config.render.manifest)
    assert (file.parent, file.suffix) == (configs / "workspace/manifests/pasted", suffix)
    assert [row.id for row in read_manifest(config.render)] == ["one"]
    assert RenderForm(rows=f"\n{rows}\n").to_config() == config


def test_a_table_and_pasted_rows_are_not_both_taken() -> None:
    with pytest.raises(ValidationError, match="beside a 'Table of pairs': empty one of the two"):
        RenderForm(rows=PASTED, manifest="pairs.csv")


def test_a_value_that_the_settings_do_not_allow_is_told_by_the_fields_label() -> None:
    form = TrainForm(learning_rate=0.5, max_train_steps=3).model_copy(
        update={"max_train_steps": "many", "learning_rate": -1}
    )
    with pytest.raises(ConfigError) as error:
        form.to_config()
    for said in ("the form: ", "'Training steps'", "'Learning rate'"):
        assert said in str(error.value), "both errors, by their labels"
    assert "hparams." not in str(error.value)


def test_unknown_settings_are_told_with_those_that_there_are(configs: Path) -> None:
    with pytest.raises(ConfigError, match=r"'480p'.*write one of: default \(files of"):
        TrainForm(settings="480p").to_config()
    (configs / "broken.yaml").write_text("hparams: {learning_rate: -1}")
    with pytest.raises(ConfigError, match=r"broken.yaml: hparams.learning_rate is -1, but"):
        TrainForm(settings="broken").to_config()
