"""Names, tags and links by which people tell runs and results apart."""

import pytest

from flows.labels import MAX_NAME, run_name, run_tags
from flows.links import object_link, run_link
from flows.nightly import verdict_of
from flows.rules import ENDS
from hvkf.config import Config
from hvkf.nightly import NightRecord, Outcome

CONFIG = Config.model_validate(
    {
        "ingest": {"dataset": "holidays"},
        "experiment": {"run_id": "kf-7", "name": "keyframes"},
        "render": {"manifest": "s3://bucket/tables/pairs.csv"},
        "nightly": {"name": "house"},
    }
)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("ingest", "ingest holidays"),
        ("encode", "encode holidays"),
        ("train", "train kf-7"),
        ("evaluate", "evaluate kf-7"),
        ("render", "render pairs.csv"),
        ("pipeline", "pipeline holidays"),
        ("nightly", "nightly house"),
    ],
)
def test_a_run_is_named_by_what_it_works_on(stage: str, name: str) -> None:
    assert run_name(stage, CONFIG) == name
    assert run_tags(stage, CONFIG)[:3] == [stage, "dataset: holidays", "run: kf-7"]


def test_a_run_without_a_name_has_that_of_the_experiment_and_long_names_are_cut() -> None:
    experiment = CONFIG.experiment.model_copy(update={"run_id": None})
    config = CONFIG.model_copy(update={"experiment": experiment})
    assert run_name("train", config) == "train keyframes"
    ingest = CONFIG.ingest.model_copy(update={"dataset": "x" * 500})
    assert len(run_name("ingest", CONFIG.model_copy(update={"ingest": ingest}))) == MAX_NAME


def test_results_are_linked_where_there_is_a_page_for_them() -> None:
    assert run_link("train", "1-2") == "[train](/runs/flow-run/1-2)"
    aws = object_link("LoRA", "s3://bucket/prefix", "runs/a b", None)
    assert "s3/object/bucket?prefix=prefix%2Fruns%2Fa%20b" in aws


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("runs/a/step-1", "{copy} s3://bucket/x/runs/a/step-1 step-1 --recursive"),
        ("evals/a b/report.html", "{copy} 's3://bucket/x/evals/a b/report.html' ."),
        ("manifests/0ab/index.html", "hvkf fetch 0ab videos/ --workspace s3://bucket/x"),
    ],
)
def test_where_s3_has_no_pages_a_command_gets_the_result(path: str, command: str) -> None:
    found = object_link("it", "s3://bucket/x", path, "http://minio:9000")
    copy = "aws s3 cp --endpoint-url http://minio:9000"
    assert found == f"it: `{command.format(copy=copy)}`"


def test_a_verdict_is_a_sentence_and_figures_without_what_only_programs_read() -> None:
    record = NightRecord(
        name="house",
        number=3,
        owner="flow-run 1",
        started_at="2026-11-29T02:00:00+00:00",
        lease_until_s=1.0,
        outcome=Outcome.PROMOTED,
        reason="promote: clip_psnr_db: +1.2",
        fingerprint="f",
        run_id="house-1",
        gpu_seconds=5400.0,
    )
    verdict = verdict_of(record)
    assert verdict["text"] == "Night 3 of house: promoted: promote: clip_psnr_db: +1.2"
    assert verdict["gpu_hours"] == 1.5
    assert not {"lease_until_s", "fingerprint", "owner", "format_version"} & verdict.keys()


@pytest.mark.parametrize("outcome", Outcome)
def test_a_night_that_ended_is_not_one_whose_process_is_gone(outcome: Outcome) -> None:
    """Events are named by states' names, and nights end in states of their own."""
    assert outcome.capitalize() in ENDS
