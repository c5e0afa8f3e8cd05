"""Every kind of object in a workspace, by its path: what it is, and what to do when it is damaged.

`docs/formats.md` shows this table.
"""

import re
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of stored object.

    Attributes:
        name: What it is called, in the plural.
        pattern: Its paths: `*` is a part of a name, `**` the rest of the path, `#` a number.
        fix: What to do when one does not read, as a main clause.
    """

    name: str
    pattern: str
    fix: str


def _again(stage: str) -> str:
    return f"restore it from a backup, or delete it and run `hvkf {stage}` again"


RESTORE = "restore it from a backup"
KINDS = (
    Kind("workspace formats", "hvkf-workspace", "write 1 into it if this hvkf wrote the rest"),
    Kind("catalog commits", "datasets/*/commits/#.json", _again("ingest")),
    Kind("video scans", "datasets/*/scans/*.json", _again("ingest")),
    Kind("catalogs", "datasets/*/*/catalog.parquet", _again("ingest")),
    Kind("ingested videos", "datasets/*/*/videos.json", _again("ingest")),
    Kind("ingest reports", "datasets/*/*/report.json", _again("ingest")),
    Kind("scene commits", "scenes/*/commits/*/#.json", _again("cache")),
    Kind("scene segments", "scenes/*/ledger/*.json", _again("cache")),
    Kind("scene shards", "scenes/*/*/*/*", _again("cache")),
    Kind("latent commits", "latents/*/commits/*/#.json", _again("encode")),
    Kind("latent segments", "latents/*/ledger/*.json", _again("encode")),
    Kind("latent shards", "latents/*/*/*/*", _again("encode")),
    Kind("previews", "previews/*.jpg", "delete it"),
    Kind("runs", "runs/*/run.json", f"{RESTORE}, or train under another experiment.run_id"),
    Kind("run results", "runs/*/result.json", _again("train")),
    Kind("losses", "runs/*/losses.jsonl", f"{RESTORE}, or train under another experiment.run_id"),
    Kind("training videos", "runs/*/trained_on.json", _again("train")),
    Kind(
        "checkpoint records",
        "runs/*/*/commit.json",
        f"{RESTORE}, or delete it, so that the run goes on from an older checkpoint",
    ),
    Kind(
        "checkpoint files",
        "runs/*/step-*/*",
        f"{RESTORE}, or delete commit.json beside it, so that the run goes on from an older one",
    ),
    Kind("metrics", "evals/*/*/*/metrics.json", _again("evaluate")),
    Kind("rendered pairs", "evals/**/pairs/*.json", _again("evaluate")),
    Kind("decisions", "registry/decisions/*.json", _again("gate")),
    Kind("kept runs", "registry/loras/*/run.json", RESTORE),
    Kind("kept LoRAs", "registry/loras/*/*.safetensors", RESTORE),
    Kind("registered names", "registry/*.json", RESTORE),
    Kind("nights", "nightly/*/#.json", f"{RESTORE}, or delete it"),
    Kind("plans", "plans/*/*.json", "delete it and plan again: run the stage's command once more"),
    Kind("manifests", "manifests/*/record.json", _again("submit")),
    Kind("planned rows", "manifests/*/rows-*.parquet", _again("submit")),
    Kind("results", "manifests/*/results.parquet", _again("submit")),
    Kind("quotes", "manifests/*/quote.json", "delete it"),
    Kind("render records", "renders/ledger/*.json", _again("submit")),
    Kind("rendered files", "renders/*/*", _again("submit")),
    Kind("claims", "claims/render/*/#.json", "delete it: its row may be tried again"),
    Kind("crashes", "claims/crashes/*.json", "delete it: a row may be tried again"),
    Kind("deletions", "gc/#.json", f"{RESTORE}, or delete it while no `hvkf gc` is at work"),
    Kind("leases", "uses/work/*.json", "delete it when its process has ended"),
    Kind("open plans", "uses/plans/*.json", "delete it"),
    Kind("timings", "timings/**.json", "delete it: only estimates need it"),
)


def _expression(pattern: str) -> re.Pattern[str]:
    parts = {"**": ".+", "*": "[^/]+", "#": r"\d{6,}"}
    pieces = re.split(r"(\*\*|\*|#)", pattern)
    return re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))


_EXPRESSIONS = [(_expression(kind.pattern), kind) for kind in KINDS]


def kind_of(path: str) -> Kind | None:
    """Tell what kind of object lies at a path of the workspace; None for a foreign one."""
    return next((kind for expression, kind in _EXPRESSIONS if expression.fullmatch(path)), None)


def fix_of(path: str) -> str:
    """Say what to do when the object at a path does not read, as a main clause."""
    kind = kind_of(path)
    return RESTORE if kind is None else kind.fix
