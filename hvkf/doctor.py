"""What this machine has and lacks for each stage, told without loading any of it."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from hvkf.atomic_files import what_folder_lacks
from hvkf.config import Config
from hvkf.config_checks import find_obstacles
from hvkf.model_source import cache_folder
from hvkf.shown import counted
from hvkf.storage import open_folder

REQUIRED = {
    "av": ("av", "ingest, cache and render read and write video"),
    "pyarrow": ("pyarrow", "catalogs"),
    "prefect": ("prefect", "`hvkf run` and the flows"),
    "torch": ("torch", "encode, train, evaluate and render; pip install 'hvkf[model]'"),
    "diffusers": ("diffusers", "the models; pip install 'hvkf[model]'"),
    "transformers": ("transformers", "the text encoders; pip install 'hvkf[model]'"),
    "streaming": ("mosaicml-streaming", "the shards; pip install 'hvkf[model]'"),
    "cv2": ("opencv-python-headless", "resizing; pip install 'hvkf[model]'"),
    "scenedetect": ("scenedetect-headless", "scene splits; pip install 'hvkf[model]'"),
}
OPTIONAL = {
    "flash_attn": ("flash-attn", "faster attention on GPUs; pip install 'hvkf[flash]'"),
    "bitsandbytes": ("bitsandbytes", "8-bit optimizers on GPUs; pip install 'hvkf[bnb]'"),
    "skvideo": ("scikit-video", "`make demo`; pip install 'hvkf[demo]'"),
    "wandb": ("wandb", "that tracker; pip install 'hvkf[wandb]'"),
    "mlflow": ("mlflow", "that tracker; pip install 'hvkf[mlflow]'"),
}
GIB = 1 << 30
MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")
LOW_SHARED_BYTES = GIB
LOW_DISK_BYTES = 20 * GIB


def examine() -> Iterable[str]:
    """Yield a line for each thing looked at; `lacks` begins those that need doing."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield (
        f"has     Python {version}" if supported else f"lacks   Python 3.11 or 3.12, not {version}"
    )
    yield from _packages(REQUIRED, "lacks")
    yield from _packages(OPTIONAL, "without")
    yield from _machine()
    yield from _shared_memory()


def examine_settings(config: Config) -> Iterable[str]:
    """Yield a line for each thing that a configuration asks for and that cannot work."""
    store = open_folder(config.workspace)
    obstacles = list(find_obstacles(config, store))
    yield from (f"lacks   {sentence}" for sentence in obstacles)
    if "://" not in store.url:
        yield from _file_system("the workspace", Path(store.url))
    if not obstacles:
        yield f"has     settings that can work, as far as is known without the data ({store.url})"


def _packages(packages: dict[str, tuple[str, str]], word: str) -> Iterable[str]:
    for module, (package, purpose) in packages.items():
        if importlib.util.find_spec(module) is None:
            yield f"{word:<8}{package}: for {purpose}"
        else:
            yield f"has     {package} {importlib.metadata.version(package)}"


def _machine() -> Iterable[str]:
    memory_gib = psutil.virtual_memory().total / GIB
    yield f"has     {counted(os.cpu_count() or 1, 'core')}, {memory_gib:.0f} GiB of memory"
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    if gpus:
        yield f"has     {len(gpus)} NVIDIA GPUs"
    else:
        yield (
            "without an NVIDIA GPU: tiny checkpoints only; HunyuanVideo needs one of 24 GB with "
            "memory options, or of 80 GB and more (docs/memory.md; `hvkf plan` counts yours)"
        )
    for name, folder in {"this folder": Path.cwd(), "the cache": cache_folder()}.items():
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        word = "has" if free >= LOW_DISK_BYTES else "lacks"
        yield f"{word:<8}{free / GIB:.0f} GiB free where {name} lies ({folder})"


def _shared_memory(folder: Path = SHARED_MEMORY) -> Iterable[str]:
    """Measure what processes that load batches hand them over in."""
    if not folder.exists():
        return
    size = shutil.disk_usage(folder).total
    if size >= LOW_SHARED_BYTES:
        yield f"has     {size / GIB:.1f} GiB in {folder}"
    else:
        yield (
            f"without 1 GiB in {folder} (it has {size / MIB:.1f} MiB): leave "
            "data.dataloader_kwargs.num_workers at 0, or enlarge it (docker run --shm-size, in "
            "Kubernetes an emptyDir with medium: Memory)"
        )


def _file_system(name: str, folder: Path) -> Iterable[str]:
    """Try whether a workspace can lie in a folder."""
    while not folder.exists():
        folder = folder.parent
    try:
        lacking = what_folder_lacks(folder)
    except OSError as error:
        yield f"without the right to write where {name} lies ({folder}: {error.strerror})"
    else:
        yield f"lacks   {lacking}" if lacking else f"has     links and locks where {name} lies"
