"""A Prefect server of one run's own: it ends with the process that started it, however that ends.

Prefect can start a temporary server by itself, but that one hears the terminal's Ctrl-C, so that
the run cannot report its end to it, and it outlives a run that is killed.
"""

import argparse
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from starlette.types import ASGIApp

from flows.form_middleware import FormErrors
from flows.origin_middleware import OwnPagesOnly, answered_for
from flows.retrying import Retrying
from flows.stop_middleware import OwnLastWords
from flows.workspace_pages import WorkspacePages
from hvkf.errors import HvkfError, TryAgain
from hvkf.processes import PARENT_VARIABLE, follow_parent

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0
AWAY_TIMEOUT_S = 600.0
# No pages, and none of the services that watch over deployments: a run needs the API only.
SERVER_SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


# Other users of the machine reach its ports as well: who asks must know the password.
SERVER_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_PASSWORD = "PREFECT_API_AUTH_STRING"


def new_password() -> str:
    """Draw a password as Prefect takes it: a name, a colon, the secret."""
    return f"hvkf:{secrets.token_urlsafe(24)}"


@contextmanager
def temporary_server(home: Path) -> Iterator[str]:
    """Run a server for one run, without pages; see `serving`.

    This process and its children, which find its password in their environment, may ask it.
    """
    os.environ[CLIENT_PASSWORD] = password = new_password()
    settings = {**SERVER_SETTINGS, SERVER_PASSWORD: password}
    with serving(home, free_port(), settings) as address:
        yield address


@contextmanager
def serving(home: Path, port: int, settings: dict[str, str]) -> Iterator[str]:
    """Run a server whose files lie in `home`, and yield its API's address.

    Its own pages and programs of this machine may ask it, with the password if `settings` has one.

    Raises:
        HvkfError: it did not start; its log is named.
    """
    address = f"http://127.0.0.1:{port}/api"
    log_file = home / "server.log"
    with log_file.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(port)],
            env={
                **os.environ,
                **settings,
                "PREFECT_API_URL": address,  # what its pages call
                PARENT_VARIABLE: str(os.getpid()),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(server, address, log_file)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for_server() -> None:
    """Wait until the server of PREFECT_API_URL answers: what ends now must be told to it.

    A work of hours is not lost to a server that is restarted meanwhile.

    Raises:
        TryAgain: it stayed away; what was done is in the workspace.
    """
    address = os.environ.get("PREFECT_API_URL")
    deadline_s = time.monotonic() + AWAY_TIMEOUT_S
    while address is not None and not answers(address):
        if time.monotonic() > deadline_s:
            raise TryAgain(
                f"Prefect's server {address} has been away for {AWAY_TIMEOUT_S:.0f} s: when it is "
                "back, retry the run; it goes on from what is done."
            )
        time.sleep(1.0)


def answers(address: str) -> bool:
    """Whether Prefect's server answers at its API's address."""
    try:
        return httpx.get(f"{address}/health", timeout=5).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def free_port() -> int:
    """Find a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(server: subprocess.Popen[bytes], address: str, log_file: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        if answers(address):
            return
        time.sleep(0.1)
    raise HvkfError(f"Prefect's server did not start; its log is {log_file}.")


def _serve(host: str, port: int, names: list[str]) -> None:
    """Serve until told to stop or until the parent process ends."""
    follow_parent()
    pages = os.environ.get("PREFECT_UI_API_URL") or f"http://127.0.0.1:{port}/api"
    answered = answered_for(pages, port, names)
    # Prefect's own setting, read when it is imported: what it tells browsers.
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(sorted(answered.origins))
    import uvicorn
    from prefect.server.api.server import create_app

    app: ASGIApp = Retrying(OwnLastWords(FormErrors(create_app())))
    if password := os.environ.get(SERVER_PASSWORD):
        app = WorkspacePages(app, password)
    app = OwnPagesOnly(app, answered)
    uvicorn.run(app, host=host, port=port, log_level="error", lifespan="on", proxy_headers=False)


def main() -> None:
    """Serve at a port; in a cluster, for other machines and under other names as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--name", action="append", default=[], help="a name that clients use")
    given = parser.parse_args()
    _serve(given.host, given.port, given.name)


if __name__ == "__main__":
    main()
