"""What people's manifests hold: each fault is named with its row, its value and the fix."""

import os
from pathlib import Path

import pytest
from PIL import Image

from hvkf.errors import BadInput
from hvkf.manifest import parse_manifest, stream_manifest
from hvkf.manifest_errors import ManifestError
from hvkf.settings.rendering import RenderConfig
from hvkf.stages import render
from hvkf.storage import FolderStore
from tests import icc
from tests.stages.render_manifests import config_for, row, rows_of, write_manifest

MEGABYTE = 1_000_000
HEADER = b"id,first_frame,last_frame,prompt,comment\n"


def test_unknown_loras_are_named_with_their_rows_all_at_once(
    pairs: Path, store: FolderStore
) -> None:
    rows = [row("one"), row("two", lora="run:gone"), row("three", lora="gone.safetensors")]
    with pytest.raises(ManifestError) as caught:
        render.plan(config_for(write_manifest(pairs, rows)), store)
    first, second = map(str, caught.value.errors)
    assert first.startswith("row 2: lora is 'run:gone': There is no run 'gone'")
    assert second.startswith("row 3: lora is 'gone.safetensors': There is no LoRA")
    assert not store.root.exists()


def test_two_keyframes_of_different_aspect_are_cropped_alike_and_it_is_noted(
    pairs: Path, store: FolderStore
) -> None:
    manifest = write_manifest(pairs, [row("one"), row("two", last="wide.png")])
    quoted = render.quoted_plan(config_for(manifest), store)
    notes = [task.notes for task in rows_of(quoted.plan, store)]
    assert notes == ["", "images of 32x32, 70x40 are cropped to 32x32"]
    assert "in 1 row images are cropped at the sides (see notes)" in quoted.quote.notes


def test_a_prompt_of_more_than_256_tokens_is_cut_and_it_is_noted(
    pairs: Path, store: FolderStore
) -> None:
    rows = [row("long", prompt="walking " * 300), row("short", prompt="walking " * 20)]
    quoted = render.quoted_plan(config_for(write_manifest(pairs, rows)), store)
    notes = {task.row.id: task.notes for task in rows_of(quoted.plan, store)}
    assert notes == {"long": "the prompt is cut after 256 tokens", "short": ""}
    assert "prompts of more than 256 tokens are cut: row 1 (long)" in quoted.quote.notes


@pytest.mark.parametrize(
    "path",
    [
        "s3://foreign/in/a.png",
        "s3://bucket/in-other/a.png",
        "s3://bucket/in/../out/a.png",
        "s3://bucket-2/in/a.png",
        "/srv/images-of-others/a.png",
        "https://bucket/in/a.png",
        "workspace:../a.png",
    ],
)
def test_images_lie_in_allowed_folders_alone(path: str) -> None:
    allowed = RenderConfig(allowed_folders=("s3://bucket/in", "/srv/images"))
    data = f"id,first_frame,last_frame,prompt\none,{path},s3://bucket/in/b.png,A cat.\n"
    with pytest.raises(BadInput, match=r"row 1: first_frame is ") as caught:
        parse_manifest(data.encode(), "pairs.csv", allowed)
    assert "last_frame" not in str(caught.value)
    parse_manifest(data.replace(path, "/srv/images/a.png").encode(), "pairs.csv", allowed)


def test_a_hundred_megabytes_of_csv_are_read_row_by_row_to_the_last_fault() -> None:
    comment = "x" * 20_000
    rows = [f"row-{n},a.png,b.png,A cat.,{comment}\n".encode() for n in range(5000)]
    data = HEADER + b"".join(rows)
    assert len(data) > 100 * MEGABYTE
    found = stream_manifest(data, "pairs.csv", RenderConfig())
    assert next(found).id == "row-0"
    assert sum(1 for _ in found) == 4999
    with pytest.raises(BadInput, match=r"1 error in 5001 rows: row 5001: id is 'row-7'"):
        list(stream_manifest(data + b"row-7,a.png,b.png,A cat.,\n", "pairs.csv", RenderConfig()))


def test_one_odd_image_path_is_one_rows_failure_and_the_others_are_planned(
    pairs: Path, store: FolderStore
) -> None:
    (pairs / "loop.png").symlink_to("loop.png")
    os.mkfifo(pairs / "pipe.png")
    odd = ["loop.png", "pipe.png", "a.png/x.png"]
    rows = [row("good"), *(row(f"odd-{n}", last=path) for n, path in enumerate(odd))]
    config = config_for(write_manifest(pairs, rows), max_failed_fraction=1.0)
    quoted = render.quoted_plan(config, store)
    failed = {failure.source: failure.code for failure in quoted.quote.failures}
    assert (quoted.quote.num_rows, quoted.quote.num_failed) == (4, 3)
    assert set(failed.values()) == {"unreadable"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 300 + ".csv", "file name too long"), ("pipe.csv", "it is a named pipe")],
)
def test_a_manifest_that_no_file_can_be_is_refused_at_once(
    tmp_path: Path, store: FolderStore, name: str, words: str
) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(BadInput, match=f"cannot be read: {words}"):
        render.plan(config_for(tmp_path / name), store)


def test_a_row_is_named_by_how_its_images_are_read_and_bad_profiles_are_noted(
    pairs: Path, store: FolderStore
) -> None:
    image = Image.open(pairs / "a.png")
    image.save(pairs / "p3.png", icc_profile=icc.display_p3())
    image.save(pairs / "bad.png", icc_profile=b"no profile")
    rows = [row("plain"), row("p3", first="p3.png"), row("bad", first="bad.png")]
    quoted = render.quoted_plan(config_for(write_manifest(pairs, rows)), store)
    tasks = {task.row.id: task for task in rows_of(quoted.plan, store)}
    contents = {name: task.keyframes[0].content for name, task in tasks.items()}
    sums = {name: task.keyframes[0].sha256 for name, task in tasks.items()}
    assert contents == {**sums, "p3": f"{sums['p3']}+icc"}
    assert tasks["bad"].notes == "bad.png: its colour profile is damaged and was not used"
    assert tasks["plain"].notes == tasks["p3"].notes == ""


def test_a_missing_manifest_is_told_before_a_missing_checkpoint(
    tmp_path: Path, store: FolderStore
) -> None:
    config = config_for(tmp_path / "pairs" / "none.csv")
    model = config.model.model_copy(update={"pretrained_model_name_or_path": "/no/checkpoint"})
    with pytest.raises(BadInput, match=r"There is no manifest .*none\.csv"):
        render.plan(config.model_copy(update={"model": model}), store)
