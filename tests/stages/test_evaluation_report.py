"""The report of an evaluation: one file that holds all that it shows."""

import re
import shutil
from pathlib import Path

from hvkf.settings.evaluation import GateConfig
from hvkf.stages.evaluation_report import write_report
from hvkf.storage import FolderStore
from tests.stages.evaluations import NUM_PAIRS, made_up, read_metrics


def test_the_report_holds_all_it_shows_itself(finished: Path) -> None:
    (file,) = (finished / "workspace").rglob("report.html")
    page = file.read_text(encoding="utf-8")
    assert page.count("data:video/mp4;base64,") == 3 * NUM_PAIRS
    assert page.count("data:image/png;base64,") == 2 * NUM_PAIRS + 1  # and the run's curves
    assert not re.findall(r"""(?:src|href|poster)=["'](?!data:)""", page)
    assert "http" not in page
    metrics = read_metrics(finished / "workspace")
    assert f"{metrics.lora.first.psnr_db:.2f} dB" in page
    for entry in metrics.pairs:
        assert entry.source in page


def test_the_report_of_many_pairs_shows_the_ten_worst_and_the_ten_best(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    store = FolderStore(tmp_path / "workspace")
    write_report(store, "report.html", made_up(25), GateConfig())
    page = store.read("report.html").decode()
    worst, best = page.index("The 10 worst pairs"), page.index("The 10 best pairs")
    assert worst < page.index("<h3>pair-00") < page.index("<h3>pair-09") < best
    assert best < page.index("<h3>pair-24") < page.index("<h3>pair-15")
    assert "<h3>pair-12" not in page
    assert page.count("Looks like a still") == 25
    assert '<b class="good">promote</b>' in page
    assert "against the base model" in page


def test_what_is_set_apart_stands_below_all_else_with_the_reason(store: FolderStore) -> None:
    reason = "<Real> clips are beyond it."
    write_report(store, "report.html", made_up(2, num_apart=1), GateConfig(), reason)
    page = store.read("report.html").decode()
    assert page.index("<h3>pair-01") < page.index("Shown apart") < page.index("<h3>apart-00")
    assert "&lt;Real&gt; clips are beyond it." in page
    write_report(store, "report.html", made_up(2), GateConfig(), reason)
    assert "Shown apart" not in store.read("report.html").decode()
