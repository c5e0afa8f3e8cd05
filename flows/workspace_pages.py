"""Pages of a workspace that lies in a folder, shown beside Prefect's: browsers block `file:` links.

The gallery, reports, pictures, videos and LoRAs, read-only. An address is a secret that is made of
the folder and the server's password: whoever may see a flow run may follow its links, nobody else
can make one up. Pages are shown in a sandbox. They have an origin of their own there, and a script
that somebody brought into one reaches neither Prefect's pages and their password nor its API.
"""

import base64
import hashlib
import hmac
import mimetypes
import os
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hvkf.errors import HvkfError
from hvkf.storage import FolderStore

PAGES_PATH = "/workspace-pages/"
SERVED_VARIABLE = "HVKF_SHOWS_WORKSPACES"
"""Of flows, set by `make serve`: its server shows pages of workspaces on this machine."""
LORA_FILES = ("pytorch_lora_weights.safetensors",)
SHOWN = {
    "evals": (".html", ".json", ".png", ".jpg", ".mp4"),
    "manifests": (".html", ".js", ".parquet", ".csv"),
    "renders": (".json", ".png", ".jpg", ".mp4"),
    "runs": (".jsonl",),
    "datasets": (".json",),
    "registry": (".md", ".jpg"),
}
"""What is shown: suffixes of files by the workspace's folder that they lie in."""
RULES = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src 'self' data:; "
    "media-src 'self' data:; style-src 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
)
HEADERS = {
    "content-security-policy": RULES,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the address is a secret
    "cache-control": "private, no-cache",
}
TEXT, READ_AS_TEXT = "text/plain", (".jsonl", ".md")
SECRET_LETTERS = 32


def is_shown(path: str) -> bool:
    """Whether an object of a workspace, such as `evals/r/report.html`, is one for people."""
    pure = PurePosixPath(path)
    if any(part.startswith(".") for part in pure.parts) or len(pure.parts) < 2:
        return False
    if pure.name in LORA_FILES:
        return True
    return pure.suffix in SHOWN.get(pure.parts[0], ())


def page_address(workspace: str, path: str, password: str) -> str:
    """Write where the server of that password shows an object of a folder: a path, without host."""
    folder = str(Path(workspace).absolute())
    written = base64.urlsafe_b64encode(folder.encode()).decode().rstrip("=")
    return f"{PAGES_PATH}{_secret(folder, password)}/{written}/{quote(path)}"


def shown_address(workspace: str, path: str) -> str | None:
    """Write where the server of this flow shows an object; None where it does not."""
    password = os.environ.get("PREFECT_API_AUTH_STRING")
    if "://" in workspace or not os.environ.get(SERVED_VARIABLE) or not password:
        return None
    return page_address(workspace, path, password) if is_shown(path) else None


class WorkspacePages:
    """An ASGI application that shows workspaces' pages, and passes all other requests on."""

    def __init__(self, app: ASGIApp, password: str) -> None:
        self._app = app
        self._password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not scope["path"].startswith(PAGES_PATH):
            await self._app(scope, receive, send)
            return
        await self._answer(scope["method"], scope["path"])(scope, receive, send)

    def _answer(self, method: str, path: str) -> Response:
        file = self._file(path.removeprefix(PAGES_PATH)) if method in ("GET", "HEAD") else None
        if file is None:
            sentence = "There is no such page: open it by its link in the run's artifact.\n"
            return PlainTextResponse(sentence, 404)
        is_text = file.suffix in READ_AS_TEXT
        kind = TEXT if is_text else mimetypes.guess_type(file.name)[0]
        return FileResponse(file, headers=HEADERS, media_type=kind or "application/octet-stream")

    def _file(self, rest: str) -> Path | None:
        secret, _, rest = rest.partition("/")
        written, _, path = rest.partition("/")
        try:
            folder = base64.urlsafe_b64decode(written + "=" * (-len(written) % 4)).decode()
            given, wanted = secret.encode(), _secret(folder, self._password).encode()
        except ValueError:  # neither is made by `page_address`
            return None
        if not hmac.compare_digest(wanted, given) or not is_shown(path):
            return None
        try:
            file = FolderStore(Path(folder), confined=True).local_path(path)
            return file if file is not None and file.is_file() else None
        except (HvkfError, OSError, ValueError):
            return None


def _secret(folder: str, password: str) -> str:
    return hmac.digest(password.encode(), folder.encode(), hashlib.sha256).hex()[:SECRET_LETTERS]
