"""Prefect's own pages in a real browser: forms are filled in, and runs are watched."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.flows.house import House, serving_house, wait_until

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]


NUM_CANCELLED_STEPS = 1500
SCREENSHOTS = "HVKF_SCREENSHOTS"
"""Environment variable with a folder that pictures for the documents are put into."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving_house(tmp_path_factory.mktemp("house")) as started:
        yield started


@pytest.fixture(scope="module")
def page(house: House) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        house.sign_in(page)
        yield page
        browser.close()


def fill(page: Page, label: str, value: str) -> None:
    """Type into the field that comes after a label."""
    header = page.locator("label", has_text=f"{label} (Optional)").last
    header.locator("xpath=following::*[self::textarea or self::input][1]").fill(value)


def follow(page: Page, text: str) -> Page:
    """Click a link of an artifact; return the page that it opens."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name=text, exact=True).click()
    return opened.value


def play(page: Page) -> None:
    """Play each video of a page for a moment."""
    assert page.locator("video").count()
    for video in page.locator("video").all():
        video.evaluate("video => video.play()")
        page.wait_for_function("video => video.currentTime > 0", arg=video.element_handle())
        assert video.evaluate("video => video.videoWidth") > 0


def reaches_nothing_of_prefects(page: Page) -> None:
    """Try what a script would that somebody brought into a page of the workspace."""
    tried = page.evaluate("""async () => {
        const tried = [self.origin];
        try { tried.push(localStorage.length); } catch (error) { tried.push(error.name); }
        try { tried.push((await fetch('/api/health')).status); }
        catch (error) { tried.push(error.name); }
        return tried;
    }""")
    assert tried == ["null", "SecurityError", "TypeError"]


def look_at_gallery(page: Page) -> None:
    """Open the gallery from an artifact: its pictures are seen, and its videos play."""
    gallery = follow(page, "gallery")
    expect(gallery.get_by_role("heading", name="1 of 1 row rendered")).to_be_visible()
    for picture in gallery.locator(".keyframes img").all():
        expect(picture).to_have_js_property("naturalWidth", 32)
    play(gallery)
    reaches_nothing_of_prefects(gallery)
    gallery.close()


def shot(page: Page, name: str) -> None:
    """Keep a picture of the page, where pictures are wanted."""
    if folder := os.environ.get(SCREENSHOTS):
        page.wait_for_timeout(1500)  # what moves has come to rest
        page.screenshot(path=Path(folder) / f"{name}.png")


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


def test_all_that_is_wrong_is_told_at_its_field_by_its_label(house: House, page: Page) -> None:
    before = house.runs()
    house.form(page, "train", "train")
    fill(page, "Training steps", "-5")
    fill(page, "Run", "a b/c")
    page.get_by_role("button", name="Submit").click()
    below = page.get_by_text("'Training steps' must be at least 0, not -5.")
    expect(below).to_be_visible(timeout=20_000)
    expect(page.get_by_text("'Run' must be letters, digits, dots, dashes")).to_be_visible()
    assert page.get_by_text(re.compile(r"request\.|A-Za-z")).count() == 0
    fill(page, "Training steps", "1")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'Training steps' must be")).to_have_count(0, timeout=20_000)
    shot(page, "form-errors")
    assert page.url.endswith("/run")

    house.form(page, "render", "render")
    fill(page, "Table of pairs", "pairs.csv")
    fill(page, "Pasted rows", "id,prompt\none,a square moves")
    page.get_by_role("button", name="Submit").click()
    both = "'Pasted rows' are given beside a 'Table of pairs': empty one of the two."
    expect(page.get_by_text(both)).to_be_visible(timeout=20_000)
    assert house.runs() == before


FORMS = {
    "ingest": ("ingest", "Table of videos"),
    "cache": ("cache", "Workers"),
    "encode": ("encode", "Workers"),
    "train": ("train", "Learning rate"),
    "evaluate": ("evaluate", "Pairs"),
    "render": ("render", "Table of pairs"),
    "pipeline": ("pipeline", "Training steps"),
    "tiny": ("pipeline", "Training steps"),
    "544p": ("pipeline", "Training steps"),
    "720p": ("pipeline", "Training steps"),
    "nightly": ("nightly", "Budget in GPU hours"),
}


@pytest.mark.parametrize("deployment", FORMS)
def test_every_deployment_has_a_form_that_explains_its_fields(
    house: House, page: Page, deployment: str
) -> None:
    flow, field = FORMS[deployment]
    house.form(page, flow, deployment)
    expect(page.get_by_text(f"{field} (Optional)")).to_be_visible()
    labels = page.locator("label", has_text="(Optional)").all_inner_texts()
    assert len(labels) >= 2
    assert not [label for label in labels if "_" in label], "a field without a title"


def test_the_chain_of_forms_ends_with_a_report_whose_videos_play(house: House, page: Page) -> None:
    """Train, evaluate and render from their forms; look at what they show."""
    for stage in ("ingest", "cache", "encode"):
        house.form(page, stage, stage)
        house.wait(house.submit(page), "Completed")
    house.form(page, "train", "train")
    fill(page, "Run", "from-forms")
    shot(page, "train-form")
    run = house.submit(page)
    house.wait(run, "Completed")
    page.reload()
    page.get_by_text("Artifacts", exact=True).click()
    expect(page.get_by_text("train-summary").first).to_be_visible(timeout=20_000)
    shot(page, "train-run")
    page.goto(house.artifact(run, "train-summary"))
    expect(page.locator("img[src^='data:image/png']")).to_be_visible(timeout=20_000)
    shot(page, "train-summary")

    house.form(page, "evaluate", "evaluate")
    fill(page, "Run", "from-forms")
    fill(page, "Pairs", "2")
    run = house.submit(page)
    house.wait(run, "Completed")
    page.goto(house.artifact(run, "evaluate-summary"))
    expect(page.locator("img[src^='data:image/jpeg']")).to_be_visible(timeout=20_000)
    report = follow(page, "report")
    expect(report.get_by_text("no-verdict")).to_be_visible()
    play(report)
    shot(report, "report")
    report.close()

    house.form(page, "render", "render")
    fill(page, "Table of pairs", str(house.manifest()))
    fill(page, "LoRA", "run:from-forms")
    run = house.submit(page)
    house.wait(run, "Completed")
    assert len(list((house.folder / "workspace" / "renders").rglob("video.mp4"))) == 1
    page.goto(house.artifact(run, "render-summary"))
    look_at_gallery(page)

    house.form(page, "render", "render")
    fill(page, "Pasted rows", house.pasted_rows())
    fill(page, "LoRA", "run:from-forms")
    run = house.submit(page)
    house.wait(run, "Completed")
    page.goto(house.artifact(run, "render-quote"))
    expect(page.get_by_text("1 to render in 1 part")).to_be_visible(timeout=20_000)
    shot(page, "render-quote")
    tasks = house.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert [task["name"].rpartition("-")[0] for task in tasks] == ["render job"], "a task for rows"
    assert len(list((house.folder / "workspace" / "renders").rglob("video.mp4"))) == 2


def test_a_fault_in_pasted_rows_is_told_with_its_row_and_its_fix(house: House, page: Page) -> None:
    house.form(page, "render", "render")
    fill(page, "Pasted rows", house.pasted_rows().replace("pasted,", "pasted,../"))
    message = house.wait(house.submit(page), "Failed")["message"]
    assert "row 1: first_frame is '../workspace:images/0.png': it leaves" in message


@pytest.mark.timeout(1800)  # 1500 steps beside others' work
def test_a_cancelled_training_saves_and_a_retry_goes_on_from_there(
    house: House, page: Page
) -> None:
    for stage in ("ingest", "cache", "encode"):
        house.form(page, stage, stage)
        house.wait(house.submit(page), "Completed")
    house.form(page, "train", "train")
    fill(page, "Deployed settings", "seldom-saved")
    fill(page, "Run", "cancelled")
    fill(page, "Training steps", str(NUM_CANCELLED_STEPS))
    run = house.submit(page)
    workspace = house.folder / "workspace"
    wait_until(lambda: " steps" in house.progress(run), "no progress was shown", 300)
    wait_until(lambda: not house.progress(run).startswith("0 of"), "no step was taken", 300)
    page.reload()
    page.get_by_role("button", name="Cancel").first.click(timeout=20_000)
    page.get_by_role("button", name="Confirm").click()
    page.goto("about:blank")  # without a GPU the page of a running flow keeps a core busy
    house.wait(run, "Cancelled", within_s=60)
    saved = list((workspace / "runs" / "cancelled").glob("step-*/commit.json"))
    assert saved, "no checkpoint was saved"
    wait_until(lambda: len(house.states(run, "Cancelled")) > 1, "the worker ended nothing", 60)
    words = "Run cancelled is saved at step-"
    assert all(words in message for message in house.states(run, "Cancelled"))
    assert not [line for line in house.logs(run) if "Crash detected" in line]
    assert not (workspace / "runs" / "cancelled" / "result.json").exists()

    page.goto(f"{house.address}/runs/flow-run/{run}")
    expect(page.get_by_text(words).first).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Retry").first.click(timeout=20_000)
    page.get_by_role("button", name="Retry").last.click()
    wait_until(
        lambda: house.ask(f"flow_runs/{run}")["state"]["name"] != "Cancelled", "no retry", 20
    )
    page.goto("about:blank")
    house.wait_while_it_proceeds(run, "Completed")
    losses = (workspace / "runs" / "cancelled" / "losses.jsonl").read_text().splitlines()
    assert len(losses) == NUM_CANCELLED_STEPS
    assert any("goes on from" in line for line in house.logs(run))
