"""Imports go down the list of DESIGN: a test reads them, so that no one has to remember."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top down: a module may import from its own level and those below.
LEVELS = [
    {
        "hvkf.cli",
        "hvkf.demo",
        "hvkf.demo_command",
        "hvkf.doctor",
        "hvkf.doctor_cluster",
        "hvkf.doctor_command",
        "hvkf.dry_run",
        "hvkf.job_commands",
        "hvkf.verify",
        "hvkf.verify_records",
        "hvkf.garbage",
        "hvkf.general_options",
        "hvkf.garbage_command",
        "hvkf.garbage_runs",
        "hvkf.garbage_sweep",
        "hvkf.garbage_used",
        "hvkf.infer",
        "hvkf.list_commands",
        "hvkf.listed",
        "hvkf.render_list",
        "hvkf.run_list",
        "hvkf.reference_commands",
        "hvkf.registry_commands",
        "hvkf.command_options",
        "hvkf.config_checks",
        "hvkf.picture_command",
        "hvkf.plan_command",
        "hvkf.plan_runner",
        "hvkf.render_commands",
        "hvkf.settings_command",
        "flows",
    },
    {
        "hvkf.stages",
        "hvkf.jobs",
        "hvkf.training",
        "hvkf.nightly",
        "hvkf.webhook",
        "hvkf.estimate",
    },
    {
        "hvkf.model",
        "hvkf.shards",
        "hvkf.mds_index",
        "hvkf.unpacking",
        "hvkf.crashes",
        "hvkf.ledger",
        "hvkf.ledger_paths",
        "hvkf.sweeps",
        "hvkf.uses",
        "hvkf.stored",
        "hvkf.journal",
        "hvkf.registry",
        "hvkf.catalog",
        "hvkf.model_source",
        "hvkf.loras",
        "hvkf.manifest",
        "hvkf.manifest_cells",
        "hvkf.manifest_errors",
    },
    {
        "hvkf.storage",
        "hvkf.storage_s3",
        "hvkf.s3_errors",
        "hvkf.media",
        "hvkf.s3_connection",
        "hvkf.video",
        "hvkf.lossless_video",
        "hvkf.keyframe_images",
        "hvkf.colour_profiles",
        "hvkf.near_duplicates",
        "hvkf.containers",
        "hvkf.buckets",
        "hvkf.resize",
        "hvkf.tables",
        "hvkf.table_files",
        "hvkf.unicode_names",
        "hvkf.parquet_rows",
        "hvkf.captions",
        "hvkf.seeds",
        "hvkf.shapes",
        "hvkf.distributed",
    },
    {
        "hvkf.records",
        "hvkf.stored_kinds",
        "hvkf.config",
        "hvkf.settings",
        "hvkf.config_file",
        "hvkf.errors",
        "hvkf.atomic_files",
        "hvkf.last_resort",
        "hvkf.os_errors",
        "hvkf.setting_values",
        "hvkf.shown",
        "hvkf.verbosity",
        "hvkf.yaml_text",
        "hvkf.redaction",
        "hvkf.progress",
        "hvkf.time_left",
        "hvkf.processes",
        "hvkf.stops",
        "hvkf.liveness",
        "hvkf.scratch",
        "hvkf.code_version",
        "hvkf.ahead",
        "hvkf.user_files",
    },
]
ONLY_IN = {
    "prefect": ("flows/",),
    "kubernetes": (
        "hvkf/jobs/kubernetes.py",
        "hvkf/jobs/kubernetes_access.py",
        "hvkf/jobs/kubernetes_config.py",
    ),
    "streaming": ("hvkf/shards.py",),
    "fsspec": ("hvkf/storage_s3.py",),
    "s3fs": ("hvkf/s3_connection.py",),
    "boto3": ("hvkf/storage_s3.py",),
    "httpcore": ("hvkf/webhook.py",),
    "botocore": ("hvkf/s3_errors.py",),
}
MODULES = sorted([*(ROOT / "hvkf").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])


def imported(file: Path) -> Iterator[str]:
    """Yield every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            # `from hvkf import ledger` imports a module, too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level_of(module: str) -> int | None:
    """Find the level of a module of the project."""
    for level, names in enumerate(LEVELS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return level
    return None


def name_of(file: Path) -> str:
    """Turn a path into a module's name."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_only_go_down(file: Path) -> None:
    own = level_of(name_of(file))
    if name_of(file) in ("hvkf", "flows"):
        return
    assert own is not None, f"{name_of(file)} stands in no level: put it into LEVELS"
    upwards = [name for name in imported(file) if (level_of(name) or own) < own]
    # level_of gives 0 for the top, which `or` would take for unknown.
    upwards += [name for name in imported(file) if level_of(name) == 0 and own > 0]
    assert not upwards


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_each_outside_library_has_one_door(file: Path) -> None:
    path = file.relative_to(ROOT).as_posix()
    for name in imported(file):
        allowed = ONLY_IN.get(name.partition(".")[0])
        assert allowed is None or path.startswith(allowed), f"{path} imports {name}"


@pytest.mark.parametrize("file", sorted((ROOT / "flows").rglob("*.py")), ids=name_of)
def test_flows_import_neither_stages_nor_torch(file: Path) -> None:
    assert not [
        name for name in imported(file) if name.startswith(("hvkf.stages", "hvkf.model.", "torch"))
    ]


@pytest.mark.parametrize("stage", ["ingest", "cache", "encode", "train", "evaluate", "render"])
def test_a_stage_module_loads_neither_torch_nor_streaming(stage: str) -> None:
    program = (
        f"import sys, hvkf.cli; hvkf.cli.stage_module({stage!r}); "
        "print([name for name in ('torch', 'streaming', 'prefect') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_the_help_waits_for_no_large_library() -> None:
    large = ("torch", "streaming", "prefect", "pyarrow", "numpy", "scipy", "PIL", "av", "s3fs")
    program = f"import sys, hvkf.cli; print([name for name in {large!r} if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
