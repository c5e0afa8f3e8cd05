"""Model cards: front matter that a model hub reads, and a picture of what the LoRA makes."""

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hvkf.records import RunRecord
from hvkf.registry import Candidate
from hvkf.stages.model_card import draw_samples, model_card
from hvkf.stages.previews import HEIGHT
from hvkf.storage import FolderStore
from tests.stages.evaluations import made_up
from tests.videos import encode, moving_frames

CANDIDATE = Candidate(lora_sha256="0" * 64, origin="run:house", decided_by="gate")
METRICS = "evals/test/step/metrics.json"


def front_matter(card: str) -> dict[str, object]:
    _, header, _ = card.split("---\n", 2)
    read: dict[str, object] = yaml.safe_load(header)
    return read


def run_on(transformer: str) -> RunRecord:
    return RunRecord(run_id="house", digest="d", settings={"transformer": transformer})


def test_a_card_names_its_base_model_and_licence() -> None:
    run = run_on("hub:hunyuanvideo-community/HunyuanVideo@main:")
    header = front_matter(model_card("house", CANDIDATE, run))
    assert header["base_model"] == "hunyuanvideo-community/HunyuanVideo"
    assert header["license"] == "other"
    assert header["license_name"] == "tencent-hunyuan-community"


def test_a_checkpoint_in_a_folder_is_no_base_model_of_the_hub() -> None:
    assert "base_model" not in front_matter(model_card("house", CANDIDATE, run_on("folder:0123")))


def write_evaluation(store: FolderStore, folder: Path) -> None:
    """Put an evaluation of two pairs with the keyframes and the LoRA's video of the first."""
    metrics = made_up(2)
    files = {"first": "evals/a.png", "last": "evals/b.png", "lora": "evals/lora.mp4"}
    pairs = [pair.model_copy(update={"files": files}) for pair in metrics.pairs]
    pairs[1] = pairs[1].model_copy(update={"files": {**files, "lora": "evals/gone.mp4"}})
    store.put(METRICS, metrics.model_copy(update={"pairs": tuple(pairs)}).to_json())
    for name, shade in (("first", 200), ("last", 40)):
        picture = io.BytesIO()
        Image.fromarray(np.full((48, 64, 3), shade, np.uint8)).save(picture, "PNG")
        store.put(files[name], picture.getvalue())
    file = encode(folder / "lora.mp4", moving_frames(5))
    store.upload(file, files["lora"])


def test_its_samples_are_the_pairs_whose_files_are_there(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "workspace")
    write_evaluation(store, tmp_path)
    drawn = draw_samples(store, METRICS)
    assert drawn is not None
    sheet = Image.open(io.BytesIO(drawn))
    assert HEIGHT < sheet.height < 2 * HEIGHT, "one row: the other pair's video is gone"
    card = model_card("house", CANDIDATE, None, has_samples=True)
    assert "![Given and made keyframes](samples.jpg)" in card

    store.delete("evals/lora.mp4")
    assert draw_samples(store, METRICS) is None
    assert draw_samples(store, None) is None
    assert "samples.jpg" not in model_card("house", CANDIDATE, None)
