"""The flow image's Python packages, installed from its lock file alone, once for each."""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from hvkf.model_source import cache_folder

ROOT = Path(__file__).parents[2]
LOCK_FILE = ROOT / "requirements-flow.lock"


def flow_python() -> Path:
    """Return the interpreter of an environment with exactly the packages of the flow image.

    It is made as the Dockerfile makes it, kept in the cache, and shared by all clones.
    """
    digest = hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest()[:16]
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_folder() / "packages" / f"flow-{version}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            _install(folder, python)
            (folder / ".complete").touch()
    return python


def _install(folder: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "-r", str(LOCK_FILE)], check=True)
    subprocess.run([*pip, "check"], check=True)


def flow_environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process in the flow image's place.

    This checkout is on its path, as a package that is installed.
    """
    record = folder / "installed" / "hvkf-0.1.0.dist-info"
    record.mkdir(parents=True, exist_ok=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: hvkf\nVersion: 0.1.0\n")
    path = f"{ROOT}{os.pathsep}{record.parent}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1", **more}
