"""Prefect's own pages in a real browser: forms are filled in, and runs are watched."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, expect, sync_playwright

from flows.server import free_port
from tests.workspaces import small_config, write_dataset

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
START_S = 240.0
RUN_S = 150.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]


class House:
    """Server, worker and deployments as `make serve` starts them, on a small data set."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def form(self, page: Page, flow: str, deployment: str) -> None:
        """Open a deployment's form."""
        found = self.ask(f"deployments/name/{flow}/{deployment}")
        page.goto(f"{self.address}/deployments/deployment/{found['id']}/run")
        expect(page.get_by_text("Deployed settings (Optional)")).to_be_visible(timeout=20_000)

    def runs(self) -> set[str]:
        """List the ids of all runs."""
        return {run["id"] for run in self.ask("flow_runs/filter", {"limit": 200})}

    def submit(self, page: Page) -> str:
        """Submit the form that is open, and go to the new run's page; return its id."""
        before, deadline_s = self.runs(), time.monotonic() + 30
        page.get_by_role("button", name="Submit").click()
        while not (new := self.runs() - before):
            assert time.monotonic() < deadline_s, "the form was not submitted"
            time.sleep(0.2)
        (run,) = new
        page.goto(f"{self.address}/runs/flow-run/{run}")
        return run

    def wait(self, run: str, *names: str, within_s: float = RUN_S) -> dict[str, Any]:
        """Wait until a run is in one of the states."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            state: dict[str, Any] = self.ask(f"flow_runs/{run}")["state"]
            if state["name"] in names:
                return state
            time.sleep(0.5)
        pytest.fail(f"the run is {state['name']} ({state['message']}), not {names}")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    config = small_config(folder, write_dataset(folder / "data", 3))
    (folder / "configs").mkdir()
    for name in ("default", "tiny"):
        values = json.loads(config.model_dump_json(exclude_unset=True))
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if "PREFECT" not in key}
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", str(folder), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
    try:
        deadline_s = time.monotonic() + START_S
        while "Prefect's UI" not in (folder / "serve.log").read_text():
            assert process.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
        yield House(folder, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1200, "height": 1000})
        browser.close()


def fill(page: Page, label: str, value: str) -> None:
    """Type into the field that comes after a label."""
    header = page.locator("label", has_text=f"{label} (Optional)").last
    header.locator("xpath=following::*[self::textarea or self::input][1]").fill(value)


def test_ingest_and_cache_are_started_from_their_forms_and_show_what_they_made(
    house: House, page: Page
) -> None:
    house.form(page, "ingest", "ingest")
    fill(page, "Data set", "from-the-form")
    house.wait(house.submit(page), "Completed")
    house.form(page, "cache", "cache")
    fill(page, "Data set", "from-the-form")
    run = house.submit(page)
    house.wait(run, "Completed")
    artifacts = house.ask(
        "artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "KEY_ASC"}
    )
    kinds = {artifact["key"]: artifact for artifact in artifacts}
    assert kinds.keys() == {"cache-parts", "cache-progress", "cache-summary"}
    assert kinds["cache-progress"]["data"] == 100.0
    assert "0 failed" in kinds["cache-progress"]["description"]
    page.goto(f"{house.address}/artifacts/artifact/{kinds['cache-summary']['id']}")
    picture = page.locator("img[src^='data:image/jpeg']")
    expect(picture).to_be_visible(timeout=20_000)
    assert picture.evaluate("picture => picture.naturalWidth") > 0


def test_unknown_settings_are_told_in_words(house: House, page: Page) -> None:
    house.form(page, "ingest", "ingest")
    fill(page, "Deployed settings", "later")
    message = house.wait(house.submit(page), "Failed")["message"]
    assert "No settings 'later' are deployed: in the field 'Deployed settings', write" in message
    assert "one of: default" in message


def test_a_value_out_of_bounds_is_refused_by_the_form(house: House, page: Page) -> None:
    house.form(page, "train", "train")
    fill(page, "Training steps", "-5")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text(re.compile("greater than or equal|minimum|>= 0")).first).to_be_visible()
    assert page.url.endswith("/run")
