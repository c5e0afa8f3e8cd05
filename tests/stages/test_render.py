"""Rendering a manifest: each row once, from its own content alone, whatever happens to others."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hvkf import ledger
from hvkf.errors import BadInput
from hvkf.model.image_quality import likeness
from hvkf.model.renderer import Renderer
from hvkf.records import Plan
from hvkf.stages import render, render_claims, render_rows
from hvkf.storage import FolderStore, file_sha256
from hvkf.video import decode_frames, probe
from tests.stages.killed_store import Killed, KilledStore, differing, tree
from tests.stages.render_manifests import (
    LORA,
    config_for,
    rendered,
    results,
    row,
    rows_of,
    without_times,
    write_image,
    write_manifest,
)


def test_rows_become_videos_with_their_settings_beside_them(
    pairs: Path, store: FolderStore
) -> None:
    manifest = write_manifest(
        pairs, [row("one"), row("two", "wide.png", num_frames=9, width=48, seed=3, steps=1)]
    )
    summary = rendered(config_for(manifest), store)
    assert summary.text == "2 videos of 2 rows"
    one, two = results(store, summary)
    assert [(r["id"], r["state"], r["row"]) for r in (one, two)] == [
        ("one", "rendered", 1),
        ("two", "rendered", 2),
    ]
    for found, size, num_frames in ((one, (32, 32), 5), (two, (48, 32), 9)):
        video = store.root / found["video"]
        info = probe(video)
        assert ((info.width, info.height), info.num_frames, float(info.fps)) == (
            size,
            num_frames,
            24,
        )
        with av.open(str(video)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            inside = json.loads(container.metadata["comment"])
        beside = json.loads(video.with_suffix(".json").read_bytes())
        assert inside == beside
        assert beside["lora_sha256"] == file_sha256(LORA)
        assert (beside["lora_alpha"], beside["prompt"]) == (8.0, "A cat.")
        assert beside["first_frame"]["psnr_db"] == found["first_frame_psnr_db"]
    assert (beside["seed"], beside["steps"], beside["width"]) == (3, 1, 48)


def test_frames_and_figures_are_those_of_the_renderer(pairs: Path, store: FolderStore) -> None:
    config = config_for(write_manifest(pairs, [row("one", seed=5)]), crf=0)
    (found,) = results(store, rendered(config, store))
    first, last = (
        torch.from_numpy(np.array(Image.open(pairs / name))) for name in ("a.png", "b.png")
    )
    renderer = Renderer(config.model, store, "fp32")
    renderer.fuse_lora(LORA, alpha=8)
    frames = renderer.render(
        {0: first, -1: last}, "A cat.", num_frames=5, steps=2, guidance=6.0, seed=5
    )
    assert found["last_frame_psnr_db"] == pytest.approx(
        likeness(frames[-1], last).psnr_db, abs=1e-3
    )
    video = store.root / found["video"]
    played = np.stack([frame for _, frame in decode_frames(video, range(5))])
    # H.264 halves the colours' resolution, so only brightness comes back.
    brightness = np.array([0.2126, 0.7152, 0.0722])
    assert float(np.abs((played - frames.numpy().astype(float)) @ brightness).mean()) < 2


def test_a_result_depends_on_its_row_alone(pairs: Path, store: FolderStore, tmp_path: Path) -> None:
    rows = [
        row("one"),
        row("two", seed=1),
        row("three", "wide.png", prompt="A dog."),
        row("four", width=64),
    ]
    together = config_for(write_manifest(pairs, rows))
    in_pairs = {r["id"]: r["identity"] for r in results(store, rendered(together, store))}
    expected = tree(store.root, "renders")

    other = FolderStore(tmp_path / "other")
    for index in (3, 1, 0, 2):
        manifest = write_manifest(pairs, [rows[index]], f"{index}.csv")
        (found,) = results(other, rendered(config_for(manifest), other))
        assert found["identity"] == in_pairs[str(rows[index]["id"])]
    assert differing(tree(other.root, "renders"), expected) == []


def test_what_was_rendered_before_is_taken_whatever_it_is_called(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered(config_for(write_manifest(pairs, [row("one"), row("two", seed=1)])), store)
    before = tree(store.root, "renders")
    shutil.copy(pairs / "a.png", pairs / "copy.png")
    manifest = write_manifest(
        pairs, [row("again", "copy.png", seed=0), row("more", seed=1)], "m.csv"
    )
    config = config_for(manifest)
    plan = render.plan(config, store)
    assert ledger.pending_parts(store, plan) == []
    assert plan.note == (
        "2 rows: 2 rendered before, 0 repeated, 0 that cannot be rendered, 0 to render in 0 parts"
    )
    monkeypatch.setattr(render_rows, "Renderer", None)
    render.run(plan, store, plan.parts)
    assert [r["id"] for r in results(store, render.commit(plan, store))] == ["again", "more"]
    assert differing(tree(store.root, "renders"), before) == []


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        (row("one", prompt="A dog."), {}),
        (row("one", "b.png"), {}),
        (row("one", last="a.png"), {}),
        (row("one", seed=9), {}),
        (row("one", guidance=1.0), {}),
        (row("one", steps=3), {}),
        (row("one", num_frames=9), {}),
        (row("one"), {"lora": "none"}),
        (row("one"), {"lora_alpha": 4.0}),
        (row("one"), {"precision": "bf16"}),
        (row("one"), {"crf": 30}),
        (row("one"), {"fps": 12}),
    ],
)
def test_whatever_changes_the_video_changes_its_identity(
    pairs: Path, store: FolderStore, changed: dict[str, object], settings: dict[str, object]
) -> None:
    def identity(entry: dict[str, object], **further: object) -> str:
        plan = render.plan(config_for(write_manifest(pairs, [entry]), **further), store)
        return rows_of(plan, store)[0].identity

    assert identity(changed, **settings) != identity(row("one"))
    assert identity(row("other name")) == identity(row("one"))


def test_rows_of_one_content_are_rendered_once(pairs: Path, store: FolderStore) -> None:
    manifest = write_manifest(pairs, [row("one"), row("two"), row("three", seed=4)])
    config = config_for(manifest)
    assert sum(len(part.outputs) for part in render.plan(config, store).parts) == 2
    one, two, three = results(store, rendered(config, store))
    assert one["video"] == two["video"] != three["video"]


def test_equal_shapes_lie_together_in_parts_of_the_set_size(
    pairs: Path, store: FolderStore
) -> None:
    rows = [row(str(n), width=(32, 64)[n % 2], seed=n) for n in range(6)]
    plan = render.plan(config_for(write_manifest(pairs, rows), rows_per_part=2), store)
    widths = [[task.row.width for task in rows_of(plan, store, part.index)] for part in plan.parts]
    assert widths == [[32, 32], [32, 64], [64, 64]]


def test_images_that_cannot_be_used_fail_their_rows_and_no_others(
    pairs: Path, store: FolderStore
) -> None:
    whole = (pairs / "a.png").read_bytes()
    (pairs / "cut.png").write_bytes(whole[:-200])
    (pairs / "text.png").write_bytes(b"text")
    rows = [
        row("cut", "cut.png"),
        row("good"),
        row("gone", "gone.png"),
        row("text", last="text.png"),
    ]
    summary = rendered(config_for(write_manifest(pairs, rows), max_failed_fraction=0.75), store)
    assert summary.counts == {"rows": 4, "failed": 3}
    found = {r["id"]: (r["state"], r["code"]) for r in results(store, summary)}
    assert found == {
        "cut": ("failed", "unreadable"),
        "good": ("rendered", ""),
        "gone": ("failed", "missing"),
        "text": ("failed", "unreadable"),
    }
    script = (store.root / summary.links["gallery"]).with_name("gallery.js")
    assert "there is no image gone.png" in script.read_text(encoding="utf-8")


def test_too_many_unusable_images_are_said_before_anything_is_rendered(
    pairs: Path, store: FolderStore
) -> None:
    manifest = write_manifest(pairs, [row("one", "gone.png"), row("two")])
    with pytest.raises(
        BadInput,
        match=r"1 error in 2 rows: row 1: first_frame is 'gone\.png': there is no image gone\.png",
    ):
        render.plan(config_for(manifest), store)
    assert not store.root.exists()


def test_too_many_failed_rows_end_the_stage_but_their_table_is_there(
    pairs: Path, store: FolderStore
) -> None:
    (pairs / "cut.png").write_bytes((pairs / "a.png").read_bytes()[:-200])
    manifest = write_manifest(pairs, [row("one", "cut.png"), row("two")])
    with pytest.raises(BadInput, match=r"row 1 \(one\): cut\.png is damaged"):
        rendered(config_for(manifest), store)
    (table,) = store.root.rglob("results.parquet")
    assert [r["state"] for r in pq.read_table(table).to_pylist()] == ["failed", "rendered"]
    assert not list((store.root / "manifests").rglob("record.json"))


def test_an_image_that_changes_after_planning_is_not_rendered_under_its_old_name(
    pairs: Path, store: FolderStore
) -> None:
    config = config_for(write_manifest(pairs, [row("one", "a.png"), row("two", "wide.png")]))
    plan = render.plan(config, store)
    write_image(pairs / "a.png", 77)
    with pytest.raises(BadInput, match=r"row 1 \(one\): a\.png has other bytes now"):
        render.run(plan, store, plan.parts)
    (part,) = plan.parts
    done = [store.exists(output) for output in part.outputs]
    assert sorted(done) == [False, True]
    assert [r["state"] for r in results(store, rendered(config, store))] == ["rendered"] * 2


def test_a_module_that_is_not_there_ends_the_worker_and_costs_no_row_a_try(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render_batch(*arguments: object, **more: object) -> None:
        raise ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")

    config = config_for(write_manifest(pairs, [row("one")]))
    plan = render.plan(config, store)
    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "render_batch", render_batch)
        with pytest.raises(ModuleNotFoundError, match="flash_attn"):
            render.run(plan, store, plan.parts)
    (claim,) = store.list(render_claims.CLAIMS)
    assert b'"released"' in store.read(claim)
    render.run(plan, store, plan.parts)
    assert [r["state"] for r in results(store, rendered(config, store))] == ["rendered"]


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_it_ends_with_the_same_bytes(
    pairs: Path, tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process plays workers that are killed: their claims name a process that is gone.
    gone = render_claims.this_worker()._replace(process_started_s=0.0)
    monkeypatch.setattr(render_claims, "this_worker", lambda: gone)
    (pairs / "cut.png").write_bytes((pairs / "a.png").read_bytes()[:-200])
    rows = [row("one"), row("cut", "cut.png"), row("two", seed=1)]
    config = config_for(write_manifest(pairs, rows), max_failed_fraction=0.5)
    rendered(config, FolderStore(tmp_path / "whole"))
    expected = without_times(tree(tmp_path / "whole", "renders", "manifests"))
    # The rows' file; for each row its claim twice; files and record; how long it took; the results;
    # the entry in the journal.
    num_writes = 1 + 3 * 2 + 2 * 5 + 1 + 1 + 4 + 1
    for at in range(0, num_writes, 2):
        root = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            rendered(config, KilledStore(root, at, after=after))
        rendered(config, FolderStore(root))
        found = without_times(tree(root, "renders", "manifests"))
        assert differing(found, expected) == []
    rendered(config, KilledStore(tmp_path / "alive", num_writes, after=after))


def test_a_manifest_that_is_done_is_not_done_again(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(write_manifest(pairs, [row("one")]))
    first = rendered(config, store)
    before = tree(store.root, ".")
    monkeypatch.setattr(render_rows, "Renderer", None)
    plan = render.plan(config, store)
    assert plan.committed is not None
    again = rendered(config, store)
    assert again.reused
    assert again.text == first.text
    assert again.links == first.links
    assert differing(tree(store.root, "."), before) == []


def test_the_gallery_shows_text_as_text_and_finds_its_files(
    pairs: Path, store: FolderStore
) -> None:
    manifest = write_manifest(pairs, [row("<b>one<|b>", prompt="</script><script>x\u2028")])
    summary = rendered(config_for(manifest), store)
    gallery = store.root / summary.links["gallery"]
    script = gallery.with_name("gallery.js").read_text(encoding="utf-8")
    assert "<" not in script
    assert "\u2028" not in script
    (found,) = gallery_rows(script)
    assert (found["id"], found["prompt"]) == ("<b>one<|b>", "</script><script>x")
    folder = gallery.parent / "../../renders" / found["identity"]
    for name in ("video.mp4", "video.json", *found["pictures"]):
        assert (folder / name).is_file()
    assert found["pictures"] == ["first.jpg", "last.jpg"]
    links = re.findall(r'(?:src|href|poster)="([^"]+)"', gallery.read_text(encoding="utf-8"))
    assert links == ["results.parquet", "gallery.js"]


def gallery_rows(script: str) -> list[dict[str, Any]]:
    """Read the gallery's data, which is a script that sets a name."""
    found = re.fullmatch(r"window\.HVKF=\{columns:(.*?),rows:(.*)\};\n", script, re.DOTALL)
    assert found is not None
    columns, rows = json.loads(found[1]), json.loads(found[2])
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


def test_planning_and_committing_load_no_torch(pairs: Path, store: FolderStore) -> None:
    config = config_for(write_manifest(pairs, [row("one")]))
    plan = render.plan(config, store)
    render.run(plan, store, plan.parts)
    program = (
        "import json, sys\n"
        "from hvkf.config import Config\n"
        "from hvkf.stages import render\n"
        "from hvkf.storage import open_store\n"
        "config = Config.model_validate_json(sys.stdin.read())\n"
        "store = open_store(config.workspace)\n"
        "render.commit(render.plan(config, store), store)\n"
        "heavy = ('torch', 'streaming', 'prefect', 'cv2')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout) == []
    assert list((store.root / "manifests").rglob("record.json"))


def test_a_plan_survives_being_stored(pairs: Path, store: FolderStore) -> None:
    plan = render.plan(config_for(write_manifest(pairs, [row("one"), row("two")])), store)
    assert Plan.from_json(plan.to_json()) == plan
