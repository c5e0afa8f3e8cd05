"""The gallery in a real browser, opened from a folder and from S3: pages, finding, sorting."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from hvkf.stages import render
from hvkf.storage import FolderStore, open_store
from tests.flows.test_browser import CHROMIUM, FLAGS
from tests.s3_server import S3Service, s3_service
from tests.stages.render_manifests import config_for, row, write_image, write_manifest

NUM_ROWS = 60
PER_PAGE = 48

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1200, "height": 1000})
        browser.close()


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    """An S3 service whose bucket anyone may read, as one that hosts pages."""
    with s3_service(tmp_path_factory.mktemp("s3"), anyone_may=("Read",)) as service:
        yield service


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace with a manifest of many rows of two contents and one failure, and its page."""
    folder = tmp_path_factory.mktemp("gallery")
    pairs = folder / "pairs"
    pairs.mkdir()
    for name, seed in (("a", 1), ("b", 2)):
        write_image(pairs / f"{name}.png", seed)
    rows = [row(f"row-{n:02d}", seed=n % 2, tags=f"tag{n}") for n in range(NUM_ROWS)]
    rows.append(row("broken", "gone.png"))
    config = config_for(write_manifest(pairs, rows))
    store = FolderStore(Path(config.workspace))
    plan = render.plan(config, store)
    render.run(plan, store, plan.parts)
    return store.root, render.commit(plan, store).links["gallery"]


def look_through(page: Page, address: str) -> None:
    faults: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.goto(address)
    cards, said = page.locator(".gallery .card"), page.locator("#page")
    expect(said).to_have_text(f"page 1 of 2, {NUM_ROWS + 1} rows")
    expect(cards).to_have_count(PER_PAGE)
    first = cards.first
    expect(first.locator("h3")).to_have_text("row-00")
    picture = first.locator("img").first
    expect(picture).to_be_visible()
    page.wait_for_function("() => document.querySelector('.card img').naturalWidth > 0")
    video = page.evaluate(
        """async () => {
            const answer = await new Promise((done) => {
                const video = document.querySelector('.card video');
                video.onloadedmetadata = () => done(video.videoWidth);
                video.onerror = () => done('cannot be played');
                video.preload = 'metadata';
                video.load();
            });
            return answer;
        }"""
    )
    assert video == 32

    captions = first.locator("figcaption").all_inner_texts()
    assert [caption.partition(":")[0] for caption in captions] == [
        "first keyframe",
        "last keyframe",
    ]
    page.get_by_role("button", name="Next").focus()
    stops = []
    for _ in range(3):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.tagName"))
    assert stops == ["VIDEO", "A", "VIDEO"], "a video is one stop, its settings another"
    first.locator("video").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => !document.querySelector('.card video').paused")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.card video').paused")

    page.get_by_role("button", name="Next").click()
    expect(said).to_have_text(f"page 2 of 2, {NUM_ROWS + 1} rows")
    expect(cards).to_have_count(NUM_ROWS + 1 - PER_PAGE)
    page.get_by_label("State").select_option("failed")
    expect(said).to_have_text("page 1 of 1, 1 row")
    expect(cards.first).to_contain_text("there is no image gone.png")
    page.get_by_label("State").select_option("rendered")
    page.get_by_label("Find").fill("TAG7 cat")
    expect(said).to_have_text("page 1 of 1, 1 row")
    expect(cards.first.locator("h3")).to_have_text("row-07")
    page.get_by_label("Find").fill("")
    for order, better in (("-keyframe_psnr_db", max), ("keyframe_psnr_db", min)):
        page.get_by_label("Order").select_option(order)
        likenesses = page.evaluate(
            """() => {
                const column = HVKF.columns.indexOf('keyframe_psnr_db');
                const found = HVKF.rows.map((row) => row[column]);
                return [...new Set(found.filter((value) => value !== null))];
            }"""
        )
        assert len(likenesses) == 2
        expect(cards.first).to_contain_text(f"worst keyframe {better(likenesses):.2f} dB")
    assert faults == []


def test_the_gallery_works_from_a_folder(page: Page, rendered: tuple[Path, str]) -> None:
    root, gallery = rendered
    look_through(page, (root / gallery).as_uri())


def test_the_gallery_works_from_s3(
    page: Page,
    rendered: tuple[Path, str],
    public: S3Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, gallery = rendered
    public.use(monkeypatch)
    url = public.new_url()
    store = open_store(url)
    folder = FolderStore(root)
    for path in (*folder.list("renders"), *folder.list("manifests")):
        store.put(path, folder.read(path))
    look_through(page, f"{public.address}/{url.removeprefix('s3://')}/{gallery}")
