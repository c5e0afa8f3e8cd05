"""The command line as a user meets it: real processes, exit codes, one sentence for each fault."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvkf.cli import STAGES
from hvkf.command_options import split_overrides
from tests.workspaces import TINY, write_clip, write_dataset, write_table


def hvkf(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hvkf.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        check=False,
    )


def refused(*arguments: str, folder: Path | None = None) -> str:
    """Run a command that must end with 65 and one sentence; return the sentence."""
    ended = hvkf(*arguments, folder=folder)
    assert ended.returncode == 65, ended.stderr
    assert "Traceback" not in ended.stderr
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


def test_help_names_every_stage_with_what_it_reads_and_writes() -> None:
    shown = hvkf("--help").stdout
    for stage in STAGES:
        assert f" {stage} " in shown
    assert "Reads" in shown
    assert "writes" in shown


@pytest.mark.parametrize("stage", STAGES)
def test_each_stages_help_teaches(stage: str) -> None:
    shown = hvkf(stage, "--help").stdout
    assert "Reads" in shown
    assert "--config" in shown
    assert "overrides" in shown


def test_doctor_says_what_this_machine_has() -> None:
    shown = hvkf("doctor").stdout
    assert "has     torch" in shown
    assert "cores" in shown


def test_a_command_without_settings_says_how_to_give_them() -> None:
    assert "Give --config FILE" in refused("cache")


def test_an_unknown_setting_is_named_with_the_nearest() -> None:
    assert "did you mean cache.head_frame" in refused("cache", "--cache.headframe=1")
    assert "The setting is --network.lora_rank=VALUE." in refused("train", "--lora_rank=4")


def test_a_setting_may_be_written_with_a_space() -> None:
    assert split_overrides(["cache", "--a.b", "1", "--config", "c.yaml", "--c.d=2"]) == (
        ["cache", "--config", "c.yaml"],
        ["--a.b=1", "--c.d=2"],
    )


def overrides(folder: Path, *more: str) -> list[str]:
    return [
        f"--workspace={folder / 'workspace'}",
        f"--ingest.metadata={folder / 'data' / 'metadata.csv'}",
        f"--model.pretrained_model_name_or_path={TINY}",
        *more,
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "metadata.csv"),
        ([("a", "/etc/passwd")], "/etc/passwd"),
        ([("a", "../outside.mp4")], "../outside.mp4"),
        ([("a", "videos/none.mp4")], "[missing]"),
    ],
)
def test_a_table_that_cannot_work_is_refused_and_nothing_is_written(
    tmp_path: Path, rows: list[tuple[str, str]], said: str
) -> None:
    write_table(tmp_path / "data", rows)
    assert said in refused("ingest", *overrides(tmp_path))
    assert not (tmp_path / "workspace" / "datasets" / "default" / "commits").exists()


def test_missing_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text("text,video\na,b.mp4\n")
    said = refused("ingest", *overrides(tmp_path))
    assert "video_file" in said
    assert "text" in said


def test_no_table_is_said_with_its_path(tmp_path: Path) -> None:
    assert "metadata.csv" in refused("ingest", *overrides(tmp_path))


def test_bad_videos_are_quarantined_with_the_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, 2)
    whole = (data / "videos" / "00001.mp4").read_bytes()
    (data / "videos" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (data / "videos" / "same.mp4").write_bytes(whole)
    write_clip(data / "videos" / "short.mp4", seed=9, num_frames=3)
    names = ["00000", "00001", "cut", "same", "short"]
    write_table(data, [("" if name == "00000" else name, f"videos/{name}.mp4") for name in names])
    ended = hvkf("ingest", *overrides(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "3 clips of 3 videos" in ended.stdout
    assert "not taken: videos/cut.mp4" in ended.stdout
    assert "not taken: videos/same.mp4: row 4 has the content of videos/00001.mp4" in ended.stdout
    cached = hvkf("cache", *overrides(tmp_path, "--cache.bucket_reso=32x32x5"))
    assert cached.returncode == 0, cached.stderr
    assert "2 samples" in cached.stdout
    assert "videos/short.mp4 from frame 0: its 3 frames are shorter" in cached.stdout


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        ("", "cache.bucket_reso is empty"),
        ("40x32x5", "not a positive multiple of 16; the nearest are 32 and 48"),
        ("32x32x6", "4k\\+1|5 and 9"),
        ("32x32", "WxHxF"),
        ("32x32x97", "the longest has 20 frames"),
    ],
)
def test_buckets_that_cannot_work_are_refused(tmp_path: Path, buckets: str, said: str) -> None:
    write_dataset(tmp_path / "data", 1)
    assert hvkf("ingest", *overrides(tmp_path)).returncode == 0
    sentence = refused("cache", *overrides(tmp_path, f"--cache.bucket_reso={buckets}"))
    assert any(word.replace("\\", "") in sentence for word in said.split("|"))
    assert not (tmp_path / "workspace" / "scenes").exists()


@pytest.mark.parametrize(
    ("stage", "said"),
    [("cache", "hvkf ingest"), ("encode", "hvkf cache"), ("train", "hvkf encode")],
)
def test_a_stage_without_its_predecessor_says_which_to_run(
    tmp_path: Path, stage: str, said: str
) -> None:
    assert said in refused(stage, *overrides(tmp_path, "--cache.bucket_reso=32x32x5"))


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 1)
    bucket = "--cache.bucket_reso=32x32x5"
    for stage in ("ingest", "cache"):
        assert hvkf(stage, *overrides(tmp_path, bucket)).returncode == 0
    said = refused(
        "encode",
        *overrides(tmp_path, bucket, "--model.pretrained_model_name_or_path=./no-such-checkpoint"),
    )
    assert "./no-such-checkpoint" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A device of 300 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this process may not mount a small device")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_that_counts(
    tmp_path: Path, small_disk: Path
) -> None:
    write_dataset(tmp_path / "data", 8, num_frames=40)
    settings = overrides(
        tmp_path,
        f"--workspace={small_disk / 'w'}",
        "--cache.bucket_reso=64x64x33",
    )
    assert hvkf("ingest", *settings).returncode == 0
    said = refused("cache", *settings)
    assert "No space left on the device of" in said
    assert "`hvkf gc`" in said
    assert not list((small_disk / "w").rglob("scenes/*/ledger/*"))


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refused("cache", "run", f"--workspace={tmp_path}", "--plan=abc")
    assert "hvkf cache plan" in said
    assert "needs --workspace and --plan" in refused("cache", "run")
