"""The whole chain as one flow: each stage's flow after the other."""

from prefect import flow

from flows.cache import cache
from flows.encode import encode
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.render import render
from flows.train import train
from hvkf.config import Config
from hvkf.records import Summary


@flow(name="pipeline")
def pipeline(config: Config) -> list[Summary]:
    """Run ingest, cache, encode, train, evaluate and, where a manifest is set, render.

    Args:
        config: All settings.
    """
    stages = [ingest, cache, encode, train, evaluate]
    if config.render.manifest is not None:
        stages.append(render)
    return [stage(config) for stage in stages]
