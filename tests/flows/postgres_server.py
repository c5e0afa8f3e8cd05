"""A PostgreSQL server of one test's own."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.server import free_port

START_S = 60.0


def programs() -> Path | None:
    """Find the folder of PostgreSQL's programs, which Debian keeps off the path."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


def _user() -> str | None:
    """Whom to run as: PostgreSQL refuses to run as root."""
    if os.getuid():
        return None
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server with a database `prefect`, and yield its address for SQLAlchemy."""
    if (folder := programs()) is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    user = _user()
    # Not below pytest's folder, which only its owner may enter.
    home = Path(tempfile.mkdtemp(prefix="hvkf-postgres-"))
    try:
        if user is not None:
            shutil.chown(home, user)
        subprocess.run(
            [folder / "initdb", "--auth=trust", "--username=prefect", "-D", home / "data"],
            user=user,
            cwd=home,
            check=True,
            capture_output=True,
        )
        port = free_port()
        with (home / "log").open("w") as log:
            server = subprocess.Popen(
                [
                    *(folder / "postgres", "-D", home / "data", "-p", str(port)),
                    *("-h", "127.0.0.1", "-k", home, "-c", "fsync=off"),
                ],
                user=user,
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_for(folder, port, home / "log")
            command = [str(folder / "createdb"), "-h", "127.0.0.1", "-p", str(port)]
            command += ["-U", "prefect"]
            subprocess.run([*command, "prefect"], check=True)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(home)


def _wait_for(folder: Path, port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    command = [str(folder / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(command, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.2)
