"""A server of one's own: who may ask it, and that it ends."""

import base64
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flows import serve
from flows.server import CLIENT_PASSWORD, temporary_server
from hvkf.processes import spare_loopback_from_proxies
from tests.workspaces import small_config, write_table


def status_of(address: str, password: str | None = None) -> int:
    """Count the flows; return the answer's status."""
    headers = {"Content-Type": "application/json"}
    if password is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    request = urllib.request.Request(f"{address}/flows/count", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_server_of_a_run_is_for_those_who_know_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users of the machine reach its port too; this process and its children may ask."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv(CLIENT_PASSWORD, "left:behind")
    with temporary_server(tmp_path) as address:
        password = os.environ[CLIENT_PASSWORD]
        assert len(password) > 30
        assert [
            status_of(address, given) for given in (None, "", ":", "left:behind", password)
        ] == [
            *(401, 401, 401, 401),
            200,
        ]
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", "flow", "ls"],
            env={**os.environ, "PREFECT_API_URL": address},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    assert password not in (tmp_path / "server.log").read_text()


def test_the_password_of_make_serve_is_made_once_and_only_its_owner_reads_it(
    tmp_path: Path,
) -> None:
    old_mask = os.umask(0)
    try:
        password = serve.read_password(tmp_path)
    finally:
        os.umask(old_mask)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert serve.read_password(tmp_path) == password
    (tmp_path / f"{serve.PASSWORD_FILE}.part").write_text("")  # a start that was killed
    file.unlink()
    assert len(serve.read_password(tmp_path)) > 30


PROXY = "http://127.0.0.1:9"
"""Where nobody listens: what goes there fails."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, PROXY)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")


@pytest.mark.usefixtures("proxy")
def test_behind_a_proxy_a_run_starts_and_asks_its_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    spare_loopback_from_proxies()
    with temporary_server(tmp_path) as address:
        environment = {**os.environ, "PREFECT_API_URL": address}
        command = [sys.executable, "-m", "prefect", "flow", "ls"]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr


@pytest.mark.usefixtures("proxy")
@pytest.mark.slow
def test_behind_a_proxy_hvkf_run_gets_to_its_first_stage(tmp_path: Path) -> None:
    table = write_table(tmp_path / "data", [("A video that is not there.", "videos/gone.mp4")])
    config = small_config(tmp_path, table)
    (tmp_path / "config.yaml").write_text(config.model_dump_json(exclude_unset=True))
    ended = subprocess.run(
        [sys.executable, "-m", "hvkf.cli", "run", "--config", str(tmp_path / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "gone.mp4" in ended.stdout + ended.stderr
    assert "server did not start" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ("", "localhost,127.0.0.1,::1"),
        ("corp.example, 127.0.0.1", "corp.example,127.0.0.1,localhost,::1"),
        ("*", "*"),
    ],
)
def test_what_a_proxy_was_not_for_before_stays_so(
    monkeypatch: pytest.MonkeyPatch, given: str, spared: str
) -> None:
    monkeypatch.setenv("no_proxy", given)
    monkeypatch.setenv("NO_PROXY", given)
    spare_loopback_from_proxies()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == spared
