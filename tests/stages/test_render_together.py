"""Two manifests at once on one workspace: what they share is rendered once, by either."""

import threading
from pathlib import Path
from typing import Any

import pytest

from hvkf.model.renderer import Renderer
from hvkf.progress import PROGRESS_VARIABLE
from hvkf.stages import render, render_rows
from hvkf.stages.render_claims import CLAIMS, ClaimRecord
from hvkf.storage import FolderStore
from tests.stages.render_manifests import (
    config_for,
    results,
    row,
    rows_of,
    write_images,
    write_manifest,
)


def test_rows_that_two_manifests_share_are_rendered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two terminals' bars cannot be drawn by one process.
    monkeypatch.setenv(PROGRESS_VARIABLE, "lines")
    # Nor can its threads load models at once; they begin to work when both have theirs.
    loading, both_loaded = threading.Lock(), threading.Barrier(2, timeout=240)

    def load(*arguments: Any) -> Renderer:
        with loading:
            renderer = Renderer(*arguments)
        both_loaded.wait()
        return renderer

    monkeypatch.setattr(render_rows, "Renderer", load)
    store = FolderStore(tmp_path / "workspace")
    folder = write_images(tmp_path / "pairs")
    seeds = {"one": range(6), "other": range(5, -1, -1)}
    configs = {
        name: config_for(
            write_manifest(
                folder, [row(f"{name}-{seed}", seed=seed) for seed in both], f"{name}.csv"
            )
        )
        for name, both in seeds.items()
    }
    plans = {name: render.plan(config, store) for name, config in configs.items()}
    # Each manifest's rows are worked off in its own order, so that both meet in the middle.
    threads = [
        threading.Thread(target=render.run, args=(plan, store, plan.parts))
        for plan in plans.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    identities = {
        name: {task.identity for task in rows_of(plan, store)} for name, plan in plans.items()
    }
    assert identities["one"] == identities["other"]
    for identity in identities["one"]:
        claims = [
            ClaimRecord.from_json(store.read(path)) for path in store.list(f"{CLAIMS}/{identity}")
        ]
        # Who claims a row in the moment in which it is finished gives it back.
        assert [claim.ended for claim in claims] in (["done"], ["done", "released"])
    owners = {
        ClaimRecord.from_json(store.read(path)).owner
        for identity in identities["one"]
        for path in store.list(f"{CLAIMS}/{identity}")
    }
    assert len(owners) == 2, "one of the two rendered everything: they did not meet"
    for plan in plans.values():
        found = results(store, render.commit(plan, store))
        assert [entry["state"] for entry in found] == ["rendered"] * 6
