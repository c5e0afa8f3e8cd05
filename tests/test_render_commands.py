"""`hvkf submit` and `hvkf fetch`: look first, render, try again what failed, take the videos."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hvkf import cli as hvkf_cli
from hvkf.errors import BadInput, CorruptData
from hvkf.manifest_errors import ManifestError
from hvkf.stages import render
from hvkf.stages.render_claims import Claims
from hvkf.stages.render_records import RenderRecord, record_path
from hvkf.storage import FORMAT_FILE, FolderStore, file_sha256
from tests.commands import run_command
from tests.stages.render_manifests import config_for, row, rows_of, write_images, write_manifest


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of images."""
    return write_images(tmp_path / "pairs")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "workspace")


def submit(manifest: Path, *options: str, **settings: object) -> None:
    """Submit a manifest under small settings that name another."""
    config = config_for(manifest.with_name("another.csv"), **settings)
    file = manifest.parents[1] / "config.json"
    file.write_text(config.model_dump_json())
    run_command("submit", str(manifest), "--config", str(file), *options)


def written(store: FolderStore) -> list[str]:
    """List what lies in the workspace beside the mark that makes it one."""
    files = [file for file in store.root.rglob("*") if file.is_file()]
    return [str(file) for file in files if file.name != FORMAT_FILE]


def render_name(store: FolderStore) -> str:
    (folder,) = {path.split("/")[1] for path in store.list("manifests")}
    return folder


def test_a_dry_run_prints_the_quote_and_writes_nothing(
    pairs: Path, store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(write_manifest(pairs, [row("one"), row("two", seed=1), row("same")]), "--dry-run")
    assert capsys.readouterr().out.splitlines()[:2] == [
        "3 rows: 0 rendered before, 1 repeated, 0 that cannot be rendered, 2 to render in 1 part",
        f"  2 rows of 32x32x5, LoRA {config_for(pairs / 'x').render.lora}: no run of the past "
        "tells how long they take",
    ]
    assert written(store) == []


def errors_beside(manifest: Path) -> list[dict[str, str]]:
    """Read the CSV of a manifest's errors."""
    with manifest.with_name(f"{manifest.name}.errors.csv").open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_all_errors_are_said_at_once_images_too_before_anything_is_asked_or_written(
    pairs: Path, store: FolderStore
) -> None:
    rows = [
        row("one", width=33),
        row("one", num_frames=6),
        row("three", "../../a.png"),
        row("four", "gone.png", prompt="", seed=-4),
    ]
    manifest = write_manifest(pairs, rows)
    with pytest.raises(ManifestError, match="7 errors in 4 rows") as caught:
        submit(manifest, "--dry-run")
    assert str(caught.value).endswith(f"All of them: {manifest}.errors.csv")
    named = [(error.row, error.field) for error in caught.value.errors]
    assert named == [
        *((1, "width"), (2, "num_frames"), (2, "id"), (3, "first_frame")),
        *((4, "prompt"), (4, "seed"), (4, "first_frame")),
    ]
    beside = errors_beside(manifest)
    assert [(int(cells["row"]), cells["field"]) for cells in beside] == named
    assert "there is no image gone.png" in beside[-1]["what to do"]
    assert written(store) == []


def test_the_terminal_shows_each_error_once_as_a_table(
    pairs: Path, store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(pairs, [row(str(n), f"gone-{n}.png") for n in range(8)])
    config = manifest.parents[1] / "config.json"
    config.write_text(config_for(manifest).model_dump_json())
    code = hvkf_cli.run_command(["submit", str(manifest), "--config", str(config), "--dry-run"])
    said, table = capsys.readouterr()
    assert code == 65
    assert "8 rows: 0 rendered before, 0 repeated, 8 that cannot be rendered" in said
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 10
    both = said + table
    assert [both.count(f"there is no image gone-{n}.png") for n in range(3, 8)] == [1] * 5
    assert "render.max_failed_fraction=" in table
    assert len(errors_beside(manifest)) == 8


def test_where_nothing_can_be_written_beside_the_manifest_its_errors_lie_in_the_workspace(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(pairs, [row("one", width=33)])
    put = FolderStore.put

    def refused(self: FolderStore, path: str, data: bytes) -> None:
        if self.root == pairs:
            raise PermissionError(13, "Permission denied")
        put(self, path, data)

    monkeypatch.setattr(FolderStore, "put", refused)
    with pytest.raises(ManifestError, match=r"All of them: .*workspace/manifests/errors/"):
        submit(manifest)
    (path,) = store.list("manifests/errors")
    assert b"width" in store.read(path)


def test_without_a_terminal_rendering_needs_a_yes(pairs: Path, store: FolderStore) -> None:
    with pytest.raises(BadInput, match="--yes"):
        submit(write_manifest(pairs, [row("one")]))
    assert written(store) == []


def test_a_submitted_manifest_is_rendered_and_fetched_under_its_ids(
    pairs: Path, store: FolderStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(pairs, [row("one"), row("ONE", seed=1), row("x" * 300, seed=2)])
    submit(manifest, "--yes")
    said = capsys.readouterr().out
    name = render_name(store)
    assert "3 videos of 3 rows" in said
    assert f"hvkf fetch {name} FOLDER --workspace {store.url}" in said
    quote = json.loads(store.read(f"manifests/{name}/quote.json"))
    assert (quote["num_rows"], quote["groups"][0]["num_rows"]) == (3, 3)

    folder = tmp_path / "videos"
    arguments = ["fetch", name[:6], str(folder), f"--workspace={store.url}"]
    run_command(*arguments)
    results = pq.read_table(folder / "results.parquet").to_pylist()
    names = [
        "one",
        f"ONE-{results[1]['identity'][:8]}",
        f"{'x' * 200}-{results[2]['identity'][:8]}",
    ]
    assert sorted(file.stem for file in folder.glob("*.mp4")) == sorted(names)
    for found, file in zip(results, names, strict=True):
        stored = store.root / found["video"]
        assert file_sha256(folder / f"{file}.mp4") == file_sha256(stored)
        assert json.loads((folder / f"{file}.json").read_bytes())["identity"] == found["identity"]

    (folder / "one.mp4").write_bytes(b"half")
    capsys.readouterr()
    run_command(*arguments)
    assert "1 video copied" in capsys.readouterr().out
    assert file_sha256(folder / "one.mp4") == file_sha256(store.root / results[0]["video"])


def test_stored_bytes_that_changed_are_not_fetched(
    pairs: Path, store: FolderStore, tmp_path: Path
) -> None:
    submit(write_manifest(pairs, [row("one")]), "--yes")
    (video,) = store.root.rglob("video.mp4")
    video.write_bytes(video.read_bytes()[:-1])
    with pytest.raises(CorruptData, match=r"video\.mp4 has other bytes"):
        run_command("fetch", render_name(store), str(tmp_path / "out"), f"--workspace={store.url}")
    assert not (tmp_path / "out" / "one.mp4").exists()


def test_verify_hashes_rendered_videos_too(
    pairs: Path, store: FolderStore, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(write_manifest(pairs, [row("one"), row("two", seed=1)]), "--yes")
    capsys.readouterr()
    run_command("verify", f"--workspace={store.url}")
    said = capsys.readouterr().out
    assert "  rendered files: 8\n" in said
    assert said.endswith("stored objects are as they were written\n")
    first, second = sorted(store.root.glob("renders/*/video.mp4"))
    first.write_bytes(first.read_bytes() + b"x")
    second.unlink()
    with pytest.raises(CorruptData, match="2 stored objects are damaged or gone"):
        run_command("verify", f"--workspace={store.url}")
    said = capsys.readouterr().out
    for video, fault in ((first, "has other bytes"), (second, "is gone although renders/ledger/")):
        assert f"{video.relative_to(store.root)} {fault}" in said


def test_a_render_that_is_not_there_or_not_finished_is_named_with_those_that_are(
    pairs: Path, store: FolderStore, tmp_path: Path
) -> None:
    render.plan(config_for(write_manifest(pairs, [row("one")])), store)
    for name, said in (("nothing", "there is no render"), (render_name(store), "no results yet")):
        with pytest.raises(BadInput, match=said):
            run_command("fetch", name, str(tmp_path / "out"), f"--workspace={store.url}")


def test_only_failed_rows_are_tried_again_with_all_their_tries(
    pairs: Path,
    store: FolderStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = write_manifest(pairs, [row(str(n), seed=n) for n in range(3)])
    config = config_for(manifest, max_failed_fraction=0.5)
    plan = render.plan(config, store)
    tasks = rows_of(plan, store)
    claims = Claims(store, life_s=60, max_tries=3)
    for _ in range(3):  # the second row fails as often as it may
        assert claims.take(tasks[1].identity) is None
        claims.end(tasks[1].identity, "failed", "out of memory")
    render.run(plan, store, plan.parts)
    assert render.commit(plan, store).counts == {"rows": 3, "failed": 1}
    kept = {name: store.read(record_path(tasks[n].identity)) for n, name in ((0, "0"), (2, "2"))}

    submit(manifest, "--yes", max_failed_fraction=0.5)
    assert "1 failed" in capsys.readouterr().out  # without the option it stays set aside
    submit(manifest, "--only-failed", "--dry-run", max_failed_fraction=0.5)
    said = capsys.readouterr().out
    assert "row 2 (1): failed too often; last: out of memory [set-aside]; it is tried again" in said
    assert "2 rendered before, 0 repeated, 0 that cannot be rendered, 1 to render in 1 part" in said
    assert RenderRecord.from_json(store.read(record_path(tasks[1].identity))).failure

    submit(manifest, "--only-failed", "--yes", max_failed_fraction=0.5)
    assert "3 videos of 3 rows" in capsys.readouterr().out
    assert RenderRecord.from_json(store.read(record_path(tasks[1].identity))).failure is None
    assert kept == {
        name: store.read(record_path(tasks[n].identity)) for n, name in ((0, "0"), (2, "2"))
    }
