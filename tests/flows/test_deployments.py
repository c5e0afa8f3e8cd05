"""prefect.yaml: a deployment per flow, presets with values of their own, nothing that pods are."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.forms import Form
from flows.pipeline import _pipeline_of, _stage
from flows.stage import run_job

ROOT = Path(__file__).parents[2]
CONTENT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {entry["name"]: entry for entry in CONTENT["deployments"]}
PRESETS = {name: entry for name, entry in DEPLOYMENTS.items() if "preset" in entry["tags"]}


def form_of(entry: dict[str, Any]) -> type[Form]:
    """Import a deployment's flow and return its one parameter's model."""
    file, _, name = entry["entrypoint"].partition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    annotations = dict(getattr(module, name).fn.__annotations__)
    form = annotations.pop("request")
    assert set(annotations) == {"return"}
    assert issubclass(form, Form)
    return form  # type: ignore[no-any-return]


def test_every_flow_has_a_deployment() -> None:
    stages = {"ingest", "cache", "encode", "train", "evaluate", "render"}
    assert stages | {"pipeline", "nightly"} <= DEPLOYMENTS.keys()
    assert PRESETS.keys() == {"tiny", "544p", "720p"}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployments_parameters_fit_its_form(name: str) -> None:
    entry = DEPLOYMENTS[name]
    form_of(entry).model_validate(entry["parameters"]["request"])
    assert entry["description"]
    assert entry["work_pool"]["name"] == "{{ $HVKF_POOL }}"
    assert set(entry["work_pool"]["job_variables"]) == {"env"}, "images are the pool's"


def test_no_flow_keeps_a_result_where_a_retry_in_another_pod_would_not_find_it() -> None:
    for entry in DEPLOYMENTS.values():
        file, _, name = entry["entrypoint"].partition(":")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert getattr(module, name).persist_result is False
    assert _stage.persist_result is False
    assert _pipeline_of.persist_result is False
    assert run_job.persist_result is False


def test_a_second_night_is_refused_by_the_night_itself_which_says_who_runs() -> None:
    """Prefect's own limit would end it with "Deployment concurrency limit reached."."""
    assert "concurrency_limit" not in DEPLOYMENTS["nightly"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_nothing_that_people_set_on_the_server_is_declared(name: str) -> None:
    """`prefect deploy` would put it back at every deployment: test_schedules.py sees it kept."""
    assert not {"schedule", "schedules", "paused"} & DEPLOYMENTS[name].keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_settings_in_the_repository(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVKF_CONFIGS", str(ROOT / "configs"))
    request = form_of(PRESETS[name]).model_validate(PRESETS[name]["parameters"]["request"])
    config = request.to_config()
    assert config.ingest.dataset == request.model_dump()["dataset"]
    assert config.hparams.max_train_steps == request.model_dump()["max_train_steps"]
