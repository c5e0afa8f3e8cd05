"""The operator's house on one machine, for a first look: server, pool, worker, deployments.

    python -m flows.serve FOLDER [--port 4200]

Everything lies in FOLDER; Ctrl-C ends all of it, and what runs is told to stop and save.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows.local import PREFECT_SETTINGS
from flows.server import CLIENT_PASSWORD, SERVER_PASSWORD, free_port, new_password, serving
from flows.service_errors import ServiceErrors
from flows.workspace_pages import SERVED_VARIABLE
from hvkf.errors import Stopped
from hvkf.processes import (
    PARENT_VARIABLE,
    end_marked,
    mark_descendants,
    spare_loopback_from_proxies,
)

POOL = "local"
PASSWORD_FILE = "password"
ROOT = Path(__file__).parents[1]
WORKER_STOP_S = 45.0
# A flow gives its job's processes 30 s to save.
FLOW_STOP_S = 40.0


def write_configs(folder: Path) -> Path:
    """Write the settings that the forms can name: the demo's as default, and the presets."""
    configs = folder / "configs"
    if not (configs / "default.yaml").exists():
        print(f"Making the demo's data and tiny checkpoint in {folder}")
        subprocess.run(
            [sys.executable, "-m", "hvkf.cli", "demo", str(folder), "--prepare-only"], check=True
        )
        configs.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "config.yaml", configs / "default.yaml")
        shutil.copyfile(folder / "config.yaml", configs / "tiny.yaml")
    for preset in ROOT.glob("configs/hunyuan-*.yaml"):
        if not (configs / preset.name).exists():
            shutil.copyfile(preset, configs / preset.name)
    return configs


def read_password(home: Path) -> str:
    """Read the password of the server whose files lie in `home`; make it at the first start.

    It stays the same from start to start, so that browsers need not ask for it again.
    """
    file, part = home / PASSWORD_FILE, home / f"{PASSWORD_FILE}.part"
    if not file.exists():
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            new.write(new_password())
        part.replace(file)
    return file.read_text()


@contextmanager
def house(folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run server, pool and worker with all deployments; yield the UI's address and the worker."""
    folder = folder.absolute()
    home = folder / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    settings = {**PREFECT_SETTINGS, "PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_HOME": str(home)}
    os.environ.update({**settings, "HVKF_CODE": str(ROOT), "HVKF_CONFIGS": str(folder / "configs")})
    password = read_password(home)
    with serving(home, port, {SERVER_PASSWORD: password}) as address:
        os.environ.update(
            {"PREFECT_API_URL": address, CLIENT_PASSWORD: password, SERVED_VARIABLE: "1"}
        )
        # The server stays until the flows have told it how they ended.
        mark = mark_descendants()
        try:
            subprocess.run(
                [sys.executable, "-m", "flows.deploy", "--pool", POOL], check=True, cwd=ROOT
            )
            with _worker(home) as worker:
                yield address.removesuffix("/api"), worker
        finally:
            end_marked(mark, FLOW_STOP_S)


@contextmanager
def _worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (home / "worker.log").open("a") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "flows.worker", POOL],
            env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C is for this process alone
        )
    try:
        yield worker
    finally:
        _stop_flows(worker)
        worker.terminate()
        try:
            worker.wait(WORKER_STOP_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _stop_flows(worker: subprocess.Popen[bytes]) -> None:
    """Tell the worker's flows to stop and save; the worker itself kills them when it is told."""
    with suppress(psutil.NoSuchProcess):
        flows = psutil.Process(worker.pid).children()
        for flow in flows:
            with suppress(psutil.NoSuchProcess):
                flow.terminate()
        psutil.wait_procs(flows, FLOW_STOP_S)


def _tell(errors: ServiceErrors) -> None:
    for sentence in errors.new():
        print(sentence, file=sys.stderr, flush=True)


def _stop(signum: int, frame: object) -> None:
    """Stop once: another signal would end the stopping, and leave processes behind."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _say_patience)
    raise Stopped("Told to stop.")


def _say_patience(signum: int, frame: object) -> None:
    os.write(2, b"Stopping: what runs saves first, for up to a minute.\n")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    given = parser.parse_args()
    spare_loopback_from_proxies()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    password_file = given.folder / "prefect" / PASSWORD_FILE
    is_first_start = not password_file.exists()
    try:
        write_configs(given.folder.absolute())
        with house(given.folder, given.port or free_port()) as (address, worker):
            if is_first_start:
                print(
                    f"The pages' password, which {password_file} keeps: {password_file.read_text()}"
                )
            else:
                print(f"The pages' password lies in {password_file}")
            print(f"Prefect's UI: {address}  (Ctrl-C ends everything)", flush=True)
            errors = ServiceErrors(given.folder / "prefect" / "server.log")
            while worker.poll() is None:
                _tell(errors)
                time.sleep(1)
            print(
                f"The worker ended (its log is {given.folder}/prefect/worker.log): the pages stay, "
                "and nothing runs until this is ended and started again.",
                file=sys.stderr,
                flush=True,
            )
            while True:
                _tell(errors)
                time.sleep(1)
    except Stopped:
        print("Everything is stopped; the same command goes on from here.")


if __name__ == "__main__":
    main()
