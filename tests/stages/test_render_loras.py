"""Which LoRA a row is rendered with, and that it costs no more than its own weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from hvkf.errors import BadInput
from hvkf.model.loading import load_vae
from hvkf.stages import render
from hvkf.storage import FolderStore
from tests.finished_runs import write_run
from tests.stages.render_manifests import (
    LORA,
    config_for,
    rendered,
    results,
    row,
    write_manifest,
)


def test_without_a_lora_setting_this_configurations_run_is_used(
    pairs: Path, store: FolderStore
) -> None:
    config = config_for(write_manifest(pairs, [row("one")]), lora=None)
    with pytest.raises(BadInput, match=r"render\.lora is not set.*no run 'test'"):
        render.plan(config, store)
    write_run(store, "test")
    (found,) = results(store, rendered(config, store))
    assert found["lora"] == "run:test/step-00000004"


def test_the_base_model_renders_without_a_lora(pairs: Path, store: FolderStore) -> None:
    config = config_for(write_manifest(pairs, [row("one")]), lora="none")
    (found,) = results(store, rendered(config, store))
    beside = json.loads((store.root / found["video"]).with_suffix(".json").read_bytes())
    assert (beside["lora"], beside["lora_sha256"], beside["lora_alpha"]) == ("none", None, None)


def test_rows_of_several_loras_are_rendered_by_models_that_were_loaded_once(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        loads.append("vae")
        return load_vae(*arguments, **options)

    monkeypatch.setattr("hvkf.model.renderer.load_vae", counted)
    rows = [row("with"), row("without", lora="none")]
    config = config_for(write_manifest(pairs, rows), rows_per_part=8)
    plan = render.plan(config, store)
    render.run(plan, store, plan.parts)
    assert loads == ["vae"]
    together = {entry["id"]: entry for entry in results(store, render.commit(plan, store))}
    alone = FolderStore(store.root.parent / "alone")
    for name, lora in (("with", str(LORA)), ("without", "none")):
        single = config_for(write_manifest(pairs, [row(name)]), lora=lora)
        its_plan = render.plan(single, alone)
        render.run(its_plan, alone, its_plan.parts)
        (entry,) = results(alone, render.commit(its_plan, alone))
        assert alone.read(entry["video"]) == store.read(together[name]["video"])
