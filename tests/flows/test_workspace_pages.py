"""Pages of a workspace beside Prefect's: by secret addresses, results only, in a sandbox."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from flows.links import object_link
from flows.origin_middleware import OwnPagesOnly, answered_for
from flows.workspace_pages import PAGES_PATH, SERVED_VARIABLE, WorkspacePages, page_address

PASSWORD, PORT = "hvkf:secret", 4200
GALLERY, VIDEO = "manifests/a b/index.html", "renders/1/video.mp4"
FILES = {
    GALLERY: b"<title>Gallery</title>",
    VIDEO: bytes(range(256)),
    "evals/r/report.html": b"report",
    "runs/r/losses.jsonl": b"{}\n",
    "runs/r/step-1/pytorch_lora_weights.safetensors": b"lora",
    "registry/loras/0/README.md": b"# a model card",
    # None of these is a result for people.
    "runs/r/step-1/optimizer.safetensors": b"x",
    "runs/r/run.json": b"x",
    "plans/train/1.json": b"x",
    "hvkf-workspace": b"x",
    "evals/.hidden/report.html": b"x",
    "renders/1/video.py": b"x",
}
SHOWN = list(FILES)[:6]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (tmp_path / "outside.html").write_text("outside")
    (folder / "evals" / "link.html").symlink_to(tmp_path / "outside.html")
    os.mkfifo(folder / "evals" / "pipe.html")
    return folder


def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
    prefects: ASGIApp = PlainTextResponse("Prefect's")
    app = OwnPagesOnly(
        WorkspacePages(prefects, PASSWORD), answered_for(f"http://127.0.0.1:{PORT}/api", PORT)
    )
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    sent = {"Host": f"127.0.0.1:{PORT}", **{k.replace("_", "-"): v for k, v in headers.items()}}

    async def answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, f"http://127.0.0.1:{PORT}{path}", headers=sent)

    return asyncio.run(answer())


@pytest.mark.parametrize("path", SHOWN)
def test_results_are_shown_in_a_sandbox(workspace: Path, path: str) -> None:
    answer = ask(page_address(str(workspace), path, PASSWORD))
    assert (answer.status_code, answer.content) == (200, FILES[path])
    rules = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts allow-downloads;" in rules, "an origin of its own"
    assert "default-src 'none'" in rules, "it asks nobody"
    assert "allow-same-origin" not in rules
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_page_in_the_sandbox_finds_its_pictures_and_videos_by_relative_links(
    workspace: Path,
) -> None:
    page = page_address(str(workspace), GALLERY, PASSWORD)
    beside = str(httpx.URL(f"http://x{page}").join("../../renders/1/video.mp4").raw_path.decode())
    answer = ask(beside, Range="bytes=2-4", Sec_Fetch_Site="cross-site")
    assert (answer.status_code, answer.content) == (206, bytes([2, 3, 4]))
    assert answer.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("path", [*list(FILES)[6:], "evals/link.html", "evals/pipe.html", "evals"])
def test_what_is_no_result_is_not_shown(workspace: Path, path: str) -> None:
    assert ask(page_address(str(workspace), path, PASSWORD)).status_code == 404


def test_no_address_can_be_made_up_from_another(workspace: Path) -> None:
    shown = page_address(str(workspace), VIDEO, PASSWORD)
    secret, folder, _ = shown.removeprefix(PAGES_PATH).split("/", 2)
    other = page_address(str(workspace.parent), "workspace/" + VIDEO, PASSWORD)
    other_folder = other.removeprefix(PAGES_PATH).split("/")[1]
    made_up = [
        page_address(str(workspace), VIDEO, "hvkf:guessed"),
        f"{PAGES_PATH}{secret}/{other_folder}/workspace/{VIDEO}",
        f"{PAGES_PATH}{secret}/{folder}/evals/../../outside.html",
        f"{PAGES_PATH}{secret}/{folder}/evals/%2e%2e/%2e%2e/outside.html",
        f"{PAGES_PATH}{secret}/{folder}//{workspace}/{VIDEO}",
        f"{PAGES_PATH}{secret}/{folder}/evals/%00.html",
        f"{PAGES_PATH}/{folder}/{VIDEO}",
        f"{PAGES_PATH}{secret}/%C3%A9/{VIDEO}",
        f"{PAGES_PATH}é/{folder}/{VIDEO}",
        PAGES_PATH,
    ]
    for address in made_up:
        answer = ask(address)
        assert answer.status_code == 404, address
        assert "by its link in the run's artifact" in answer.text
    assert ask(shown, method="POST").status_code == 404
    assert ask(shown, Host="evil.example").status_code == 403
    assert ask("/runs").text == "Prefect's"


def test_a_result_is_linked_where_a_server_shows_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SERVED_VARIABLE, raising=False)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PASSWORD)
    in_words = f"gallery: `{workspace}/{GALLERY}`"
    assert object_link("gallery", str(workspace), GALLERY, None) == in_words
    monkeypatch.setenv(SERVED_VARIABLE, "1")
    address = page_address(str(workspace), GALLERY, PASSWORD)
    linked = f"[gallery]({address}) (`{workspace}/{GALLERY}`)"
    assert object_link("gallery", str(workspace), GALLERY, None) == linked
    folder = object_link("checkpoint", str(workspace), "runs/r/step-1", None)
    assert folder == f"checkpoint: `{workspace}/runs/r/step-1`", "a folder is no page"


@pytest.mark.parametrize("address", ["\udcff/eA/evals/report.html", "0/\udcff/evals/report.html"])
def test_an_address_that_is_no_text_is_no_page(address: str) -> None:
    """What no server sends on raised within the application."""
    assert WorkspacePages(PlainTextResponse("Prefect's"), PASSWORD)._file(address) is None
