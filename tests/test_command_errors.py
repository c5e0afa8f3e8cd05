"""What commands refuse, ask and say at their end; in this process, for the sake of speed."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvkf import cli
from hvkf.command_options import split_overrides
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.jobs.spec import fault_of
from hvkf.model_source import cache_folder
from hvkf.redaction import without_secrets
from hvkf.storage import open_store
from tests.workspaces import TINY, write_table

END = "An error of hvkf itself"


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> "Ended":
    return Ended(capsys)


class Ended:
    """Runs a command; holds what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        self._capsys.readouterr()
        code = cli.run_command(arguments)
        self.out, self.err = self._capsys.readouterr()
        return code

    def refused(self, *arguments: str) -> str:
        """Run a command that must end with 65 and one sentence; return that."""
        assert self(*arguments) == 65, self.err
        line = self.err.splitlines()[-1]  # bars of progress may come before it
        assert "Traceback" not in self.err
        assert line.startswith("error: ")
        assert len(line) < 600
        return line


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def garbage(folder: Path) -> Path:
    store = open_store(str(folder))
    store.put("scenes/x/32x32x5/left-0a1b/shard.00000.mds", b"x")
    return folder / "scenes/x/32x32x5/left-0a1b/shard.00000.mds"


def test_what_stands_beside_piped_settings_wins(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine, others = garbage(tmp_path / "b"), garbage(tmp_path / "a")
    command = ["gc", "--delete", "--older-than-hours=0", "--yes", "--config", "-"]
    pipe(monkeypatch, f"workspace: {tmp_path / 'a'}")
    assert ended(*command, "--workspace", str(tmp_path / "b")) == 0
    assert others.exists()
    assert not mine.exists()
    assert str(tmp_path / "b") in ended.out


def test_an_override_beside_piped_settings_is_checked(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe(monkeypatch, f"workspace: {tmp_path}")
    assert "cache.head_frame is 'x'" in ended.refused("gc", "--config=-", "--cache.head_frame=x")


def test_nothing_is_deleted_unasked(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = garbage(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    command = ["gc", "--delete", "--older-than-hours=0", f"--workspace={tmp_path}"]
    said = ended.refused(*command)
    assert f" of {tmp_path}? Nobody is there to be asked: add --yes" in said
    assert "Delete 1 object" in said
    assert ended.out.startswith(f"workspace {tmp_path}\n")
    assert left.exists()


@pytest.mark.parametrize(("answer", "is_left"), [("y\n", False), ("n\n", True), ("", True)])
def test_a_person_is_asked(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, is_left: bool
) -> None:
    left = garbage(tmp_path)
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    code = ended("gc", "--delete", "--older-than-hours=0", f"--workspace={tmp_path}")
    assert left.exists() == is_left
    assert code == (cli.INTERRUPTED_CODE if is_left else 0)


@pytest.mark.parametrize(
    "command",
    [
        ["cache", "run", "--workspace=w", "--plan=p", "--cache.head_frame=1"],
        ["cache", "commit", "--workspace=w", "--plan=p", "--cache.head_frame=1"],
        ["cache", "run", "--workspace=w", "--plan=p", "--config=c.yaml"],
        ["picture", "cache", "x", "--workspace=w", "--cache.head_frame=1"],
        ["jobs", "reap", "--yes", "--jobs.cluster.namespace=x"],
        ["jobs", "release", "x", "--yes", "--jobs.cluster.namespace=x"],
        ["demo", "folder", "--render.steps=1"],
        ["export-lora", "a.sft", "b", "--format=comfyui", "--render.steps=1"],
        [
            *("infer", "--lora=none", "--frame1=a", "--frame2=b", "--prompt=x"),
            "--render.steps=1",
        ],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_settings_that_a_command_does_not_look_at_are_refused(
    ended: Ended, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ended.refused(*command)
    assert command[-1].partition("=")[0] in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--a.b"], ["--a.b", "--config", "c.yaml"]])
def test_a_setting_without_a_value_takes_no_option_for_one(ended: Ended, words: list[str]) -> None:
    assert "'--a.b' has no value" in ended.refused("cache", *words)


def test_what_follows_two_dashes_is_no_setting() -> None:
    assert split_overrides(["a", "--", "--b.c=1"]) == (["a", "--", "--b.c=1"], [])


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", breaks)


def test_an_unknown_exception_is_a_sentence_and_a_file(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    broken(monkeypatch, ZeroDivisionError("wJalrXUtnFEMI/K7MDENG\nby https://u:pw@host/x?token=t"))
    assert ended("gc", "--workspace=w") == 70
    (line,) = ended.err.splitlines()
    (file,) = tmp_path.iterdir()
    kept = file.read_text()
    assert f"{END} (ZeroDivisionError: (hidden) by https://host/x?(hidden)" in line
    assert str(file) in line
    assert "in breaks" in kept
    assert file.stat().st_mode & 0o077 == 0
    for text in (line, kept):
        assert "wJalr" not in text
        assert "pw@" not in text


def test_in_a_pod_the_traceback_is_in_its_log(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    broken(monkeypatch, IndexError("list index out of range"))
    assert ended("gc", "--workspace=w") == 70
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith(f"error: {END}")
    assert list(tmp_path.iterdir()) == []


def test_a_long_exception_is_told_short(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken(monkeypatch, KeyError("x" * 100_000))
    assert ended("gc", "--workspace=w") == 70
    assert len(ended.err) < 600


def test_a_package_that_is_not_installed_is_named(
    ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, ModuleNotFoundError("No module named 'scenedetect'", name="scenedetect"))
    assert "the Python module 'scenedetect', which is not installed" in ended.refused(
        "gc", "--workspace=w"
    )


def test_a_workers_own_error_is_one_of_hvkf() -> None:
    error = fault_of(70, "An error of hvkf itself")
    assert error is not None
    assert error.exit_code == 70


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("HVKF_WEBHOOK", "https://hooks.example/T0/B0/xyz")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    text = without_secrets("hf_abcdefgh at https://hooks.example/T0/B0/xyz is a word")
    assert text == "(hidden) at (hidden) is a word"


def test_the_flows_call_of_a_stage_is_as_before(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = Config(workspace=str(tmp_path))
    pipe(monkeypatch, config.model_dump_json())
    assert "hvkf ingest" in ended.refused("cache", "plan", "--config", "-")


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EACCES, 65, "/a/b cannot be used: permission denied"),
        (errno.EROFS, 65, "/a/b cannot be used: a read-only file system"),
        (errno.ENOTDIR, 65, "/a/b cannot be made: a file is where a folder is needed"),
        (errno.ENAMETOOLONG, 65, "/a/b cannot be opened as a file: File name too long"),
        (errno.ENOSPC, 65, "No space left on the device of /a/b"),
        (errno.EIO, 75, "/a/b: Input/output error; this may pass"),
        (errno.EMFILE, 75, "/a/b: Too many open files; this may pass"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, number: int, code: int, said: str
) -> None:
    broken(monkeypatch, OSError(number, os.strerror(number), "/a/b"))
    assert ended("gc", "--workspace=w") == code
    assert said in ended.err


def test_a_full_device_that_no_error_names_is_one_of_two(
    ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert "No space left on the device of the workspace or of TMPDIR: free" in ended.refused(
        "gc", "--workspace=w"
    )


def test_a_folder_of_temporary_files_that_is_not_there_is_said(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert "TMPDIR is" in ended.refused("cache", f"--workspace={tmp_path / 'w'}")
    assert not (tmp_path / "w").exists()


def test_a_user_without_a_home_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("uid")))
    with pytest.raises(BadInput, match="set HOME"):
        cache_folder()


@pytest.mark.parametrize("command", ["ingest", "cache", "verify", "gc", "run"])
def test_a_workspace_that_is_a_file_is_refused_by_each_command(
    ended: Ended, tmp_path: Path, command: str
) -> None:
    (tmp_path / "w").write_text("")
    arguments = [command, f"--workspace={tmp_path / 'w'}"]
    assert "is a file: name a folder" in ended.refused(*arguments)
    assert "lies below" in ended.refused(command, f"--workspace={tmp_path / 'w' / 'x'}")


def test_a_prefect_server_that_is_away_is_said_at_once(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://u:hush@127.0.0.1:9/api")
    settings = [
        f"--workspace={tmp_path / 'w'}",
        f"--ingest.metadata={write_table(tmp_path / 'data', [])}",
        f"--model.pretrained_model_name_or_path={TINY}",
        "--cache.bucket_reso=32x32x5",
    ]
    assert ended("run", *settings) == 75
    assert "PREFECT_API_URL=http://127.0.0.1:9/api does not answer: start it" in ended.err


def test_a_table_without_a_usable_video_says_why(ended: Ended, tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", [("a", "videos/gone.mp4")])
    said = ended.refused(
        "ingest",
        f"--workspace={tmp_path / 'w'}",
        f"--ingest.metadata={table}",
        "--ingest.max_failed_fraction=1.0",
    )
    assert "not one video can be used: videos/gone.mp4: " in said
    assert "[missing]" in said


@pytest.mark.parametrize("kind", ["thread", "pool"])
def test_a_command_that_has_said_its_error_ends(tmp_path: Path, kind: str) -> None:
    code = (
        "import sys, threading, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from hvkf import cli\n"
        "cli.END_TIMEOUT_S = 1.0\n"
        "def hang(*_): time.sleep(600)\n"
        "if sys.argv.pop() == 'pool': ThreadPoolExecutor(1).submit(hang)\n"
        "else: threading.Thread(target=hang).start()\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", code, "gc", f"--workspace={tmp_path}", "--x.y=1", kind]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 65
    assert "there is no setting x" in ended.stderr


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (["gc", "--workspace=."], subprocess.PIPE),
        ([], subprocess.PIPE),  # whose help is printed as an error is
        (["gc", "--workspace=nowhere"], subprocess.STDOUT),
    ],
)
def test_a_reader_that_is_gone_ends_a_command_quietly(
    tmp_path: Path, words: list[str], errors: int
) -> None:
    open_store(str(tmp_path))
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "hvkf.cli", *words],
            stdout=write,
            stderr=errors,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert ended.returncode == cli.NO_READER_CODE
    assert not ended.stderr
