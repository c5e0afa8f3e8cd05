"""What tests of stages begin with."""

import shutil
from pathlib import Path

import pytest

from hvkf.stages import cache, ingest
from hvkf.storage import FolderStore
from tests.finished_runs import write_run
from tests.stages.evaluations import config_in, evaluated
from tests.stages.render_manifests import write_images
from tests.workspaces import write_dataset


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of images."""
    return write_images(tmp_path / "pairs")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "workspace")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, its scenes, and a run that looks finished."""
    folder = tmp_path_factory.mktemp("prepared")
    write_dataset(folder / "data", 4)
    config = config_in(folder)
    store = FolderStore(folder / "workspace")
    for stage in (ingest, cache):
        plan = stage.plan(config, store)
        stage.run(plan, store, plan.parts)
        stage.commit(plan, store)
    write_run(store, "test")
    return folder


@pytest.fixture(scope="session")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an evaluation; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    evaluated(config_in(folder), FolderStore(folder / "workspace"))
    return folder
