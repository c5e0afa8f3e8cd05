"""What of a configuration can be known not to work before the first stage begins. No torch."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hvkf.buckets import Bucket
from hvkf.config import Config
from hvkf.errors import BadInput, HvkfError
from hvkf.jobs.manifest import check_workspace
from hvkf.jobs.spec import JobSpec
from hvkf.loras import RUN_SCHEME, resolve_lora
from hvkf.model_source import WORKSPACE_SCHEME, model_folder_or_hub_id
from hvkf.settings.jobs import StageJobs
from hvkf.settings.optimizers import OPTIMIZERS, known_name
from hvkf.shown import shown_name
from hvkf.storage import Store

POD_STAGES = ("cache", "encode", "train", "evaluate", "render")
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
MAX_SHOWN = 4


def check_before_start(config: Config, store: Store) -> None:
    """Refuse what a later stage would refuse, hours later.

    Raises:
        BadInput: all that is known not to work.
    """
    if not (found := list(find_obstacles(config, store))):
        return
    told = " ".join(found[:MAX_SHOWN])
    more = f" And {len(found) - MAX_SHOWN} more." if len(found) > MAX_SHOWN else ""
    raise BadInput(f"Nothing was begun. {told}{more}")


def find_obstacles(config: Config, store: Store) -> Iterator[str]:
    """Yield a sentence for each thing that cannot work, without looking at the data."""
    checks = (_buckets, _checkpoint, _trained_on, _rendered_with, _files, _packages, _pods)
    for check in checks:
        yield from check(config, store)


def _refused(ask: Callable[[], object]) -> Iterator[str]:
    try:
        ask()
    except HvkfError as error:
        sentence = str(error)
        yield sentence if sentence.endswith(".") else f"{sentence}."


def _buckets(config: Config, store: Store) -> Iterator[str]:
    if not config.cache.bucket_reso and config.data.local is None:
        yield "cache.bucket_reso is empty: give at least one bucket as WxHxF, such as 960x544x33."
    for text in config.cache.bucket_reso:
        yield from _refused(partial(Bucket.parse, text))


def _checkpoint(config: Config, store: Store) -> Iterator[str]:
    name = config.model.pretrained_model_name_or_path
    if not name.startswith(WORKSPACE_SCHEME):
        yield from _refused(lambda: model_folder_or_hub_id(config.model, store))
    elif not any(store.list(name.removeprefix(WORKSPACE_SCHEME))):
        yield f"There is no checkpoint {shown_name(name)!r} in the workspace {store.url}."


def _trained_on(config: Config, store: Store) -> Iterator[str]:
    if config.network.lora_weights is not None:
        yield from _refused(lambda: resolve_lora(str(config.network.lora_weights), store))


def _rendered_with(config: Config, store: Store) -> Iterator[str]:
    lora = config.render.lora
    if lora is None or config.render.manifest is None:
        return  # this run's own, which is yet to be trained
    if config.experiment.run_id and lora.startswith(f"{RUN_SCHEME}{config.experiment.run_id}"):
        return
    yield from _refused(lambda: resolve_lora(lora, store))


def _files(config: Config, store: Store) -> Iterator[str]:
    named = {"render.manifest": config.render.manifest}
    if config.data.local is None:
        named |= {"ingest.metadata": config.ingest.metadata}
    if config.evaluate.extras and config.jobs.evaluate.executor == "local":
        named |= {"evaluate.extras_weights": config.evaluate.extras_weights}
    for key, path in named.items():
        is_here = path is not None and "://" not in path and not path.startswith(WORKSPACE_SCHEME)
        if path is not None and is_here and not Path(path).exists():
            yield f"{key} is {shown_name(path)!r}, which is not there."


def _packages(config: Config, store: Store) -> Iterator[str]:
    if config.jobs.train.executor != "local":
        return  # the image of the pods has them or not
    module, fix = OPTIMIZERS[known_name(config.hparams.optimizer_type)]
    if importlib.util.find_spec(module.partition(".")[0]) is None and fix:
        yield f"hparams.optimizer_type={config.hparams.optimizer_type} needs a package: {fix}."
    for tracker in config.experiment.trackers:
        if importlib.util.find_spec(TRACKERS[tracker]) is None:
            yield f"experiment.trackers has {tracker}, which needs: pip install 'hvkf[{tracker}]'."


def _pods(config: Config, store: Store) -> Iterator[str]:
    for stage in POD_STAGES:
        jobs: StageJobs = getattr(config.jobs, stage)
        if jobs.executor != "kubernetes" or (stage == "render" and not config.render.manifest):
            continue
        job = JobSpec(
            stage=stage,
            workspace=store.url,
            plan="",
            parts=None,
            attempt=1,
            jobs=jobs,
            cluster=config.jobs.cluster,
        )
        if sentences := list(_refused(partial(check_workspace, job))):
            yield from sentences
            return  # the other stages would say the same
