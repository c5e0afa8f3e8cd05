"""The report of an evaluation: one HTML file with its figures, verdict, curves and videos."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from hvkf.records import FileEntry
from hvkf.settings.evaluation import GateConfig
from hvkf.stages.evaluate_gate import verdict_on
from hvkf.stages.evaluate_records import Metrics, PairMetrics
from hvkf.stages.pages import data_uri, render_page
from hvkf.stages.pictures import as_data_uri, curves
from hvkf.storage import Store
from hvkf.stored import put_file, read_object
from hvkf.training.runs import result_path

PLACES = {"first": "First frame", "last": "Last frame", "clip": "Whole clip"}
MOTIONS = {
    "flicker": "Flicker, levels",
    "flow_warp": "Flow-warp error",
    "end_jump": "End jump",
    "colour_drift": "Colour drift, levels",
    "freeze": "Frozen share",
    "cross_fade": "Cross-fade share",
}
NUM_SHOWN = 10
"""Pairs with their videos, of the worst and of the best."""
SUSPICIOUS_SHARE = 0.9
"""Above it a clip is called frozen, or a cross-fade, unless the truth is so too."""


def write_report(
    store: Store, path: str, metrics: Metrics, rule: GateConfig, apart_reason: str = ""
) -> FileEntry:
    """Write the report: one HTML file that holds its pictures and videos itself.

    Args:
        store: The workspace.
        path: Where to write it.
        metrics: What was found.
        rule: Of the gate; the report says what it makes of the figures at this moment.
        apart_reason: Stands above the pairs that are only shown.
    """
    ordered = sorted(metrics.pairs, key=_likeness)
    page = render_page(
        "evaluation.html.j2",
        metrics=metrics,
        groups=_groups(store, ordered),
        apart=_cards(store, sorted(metrics.apart, key=_likeness)),
        apart_reason=apart_reason,
        suspicious=[(pair, word) for pair in ordered if (word := suspicion(pair))],
        places=PLACES,
        motions=MOTIONS,
        verdict=verdict_on(rule, store, metrics),
        registry=rule.registry,
        curves=_curves(store, metrics.run_id),
    )
    return put_file(store, path, page)


def _likeness(pair: PairMetrics) -> tuple[float, str]:
    return pair.lora.clip.psnr_db, pair.key


def _groups(store: Store, ordered: list[PairMetrics]) -> dict[str, list[dict[str, Any]]]:
    """Title the pairs that are shown with their videos: all, or the worst and the best ten."""
    if len(ordered) <= 2 * NUM_SHOWN:
        groups = {"Pairs, the worst first": ordered}
    else:
        groups = {
            f"The {NUM_SHOWN} worst pairs": ordered[:NUM_SHOWN],
            f"The {NUM_SHOWN} best pairs": ordered[: -NUM_SHOWN - 1 : -1],
        }
    return {title: _cards(store, pairs) for title, pairs in groups.items()}


def _cards(store: Store, pairs: Sequence[PairMetrics]) -> list[dict[str, Any]]:
    return [{"pair": pair, "media": _media(store, pair)} for pair in pairs]


def _media(store: Store, pair: PairMetrics) -> dict[str, str]:
    return {
        name: data_uri(read_object(store, file), PurePosixPath(file).suffix)
        for name, file in pair.files.items()
    }


def suspicion(pair: PairMetrics) -> str:
    """Say what a clip looks like that it should not: frozen, or a cross-fade; empty if neither."""
    made, true = pair.lora_motion, pair.truth_motion
    if made is None or true is None:
        return ""
    if made.freeze >= SUSPICIOUS_SHARE > true.freeze:
        return "frozen"
    if made.cross_fade >= SUSPICIOUS_SHARE > true.cross_fade:
        return "a cross-fade"
    return ""


def _curves(store: Store, run_id: str) -> str | None:
    """Draw the run's losses; None where the run has no result yet."""
    if not store.exists(result_path(run_id)):
        return None
    return as_data_uri((curves(store, result_path(run_id)), ".png"))
