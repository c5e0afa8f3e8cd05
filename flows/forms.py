"""What a person fills in to start a flow: a few fields over settings that were deployed.

A form names a file of settings in the folder `HVKF_CONFIGS` and changes a handful of its values.
Images, commands, environments and pod patches have no field here: they come from that file alone.
An empty text and a zero mean: as the deployed settings say (Prefect's forms draw optional fields
badly, and submit every default).
"""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from hvkf.config import Config
from hvkf.config_file import COMMAND_LINE, load_config
from hvkf.errors import ConfigError
from hvkf.manifest import keep_pasted_rows
from hvkf.storage import open_store

CONFIGS_VARIABLE = "HVKF_CONFIGS"
AS_DEPLOYED = "as deployed"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_OR_EMPTY = r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"

Dataset = Annotated[
    str,
    Field(
        title="Data set",
        max_length=100,
        pattern=NAME_OR_EMPTY,
        description="Name of the data set; empty: as deployed.",
    ),
]
RunId = Annotated[
    str,
    Field(
        title="Run",
        max_length=150,
        pattern=NAME_OR_EMPTY,
        description="Name of the training run; empty: as deployed, or made up from its work.",
    ),
]
Workers = Annotated[
    int,
    Field(
        title="Workers",
        ge=0,
        le=1024,
        description="Processes or pods to share the work out to; 0: as deployed.",
    ),
]
Metadata = Annotated[
    str,
    Field(
        title="Table of videos",
        max_length=1000,
        description="Path or s3:// address of a CSV, JSON, JSONL or Parquet table with a caption "
        "and a video file in each row; empty: as deployed.",
    ),
]
Manifest = Annotated[
    str,
    Field(
        title="Table of pairs",
        max_length=1000,
        description="Path or s3:// address of a table with id, first_frame, last_frame and prompt "
        "in each row; empty: as deployed.",
    ),
]
Steps = Annotated[
    int,
    Field(
        title="Training steps",
        ge=0,
        le=10_000_000,
        description="Optimizer steps; 0: as deployed.",
    ),
]


def configs_folder() -> Path:
    """Where the deployed settings lie."""
    return Path(os.environ.get(CONFIGS_VARIABLE, "configs"))


def deployed_file(name: str) -> Path:
    """Find deployed settings by name.

    Raises:
        ConfigError: there are none of that name; those that are there are listed.
    """
    folder = configs_folder()
    file = folder / f"{name}.yaml"
    if not file.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.yaml"))) or "none"
        raise ConfigError(
            f"No settings {name!r} are deployed: in the field 'Deployed settings', write one of: "
            f"{there} (files of {folder.absolute()})."
        )
    return file


class Form(BaseModel):
    """The field that every flow's form begins with."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    # Which setting each field of the form changes.
    SETS: ClassVar[dict[str, str]] = {}

    settings: str = Field(
        "default",
        title="Deployed settings",
        pattern=NAME,
        max_length=100,
        description="Name of a file of settings that was deployed, such as default.",
    )

    def to_config(self) -> Config:
        """Read the deployed settings and change what the form gives.

        Raises:
            ConfigError: no such settings, or a value they do not allow.
        """
        given: dict[str, Any] = {name: getattr(self, name) for name in self.SETS}
        overrides = [
            f"--{self.SETS[name]}={value}"
            for name, value in given.items()
            if value not in ("", 0, AS_DEPLOYED)
        ]
        try:
            return load_config(deployed_file(self.settings), overrides)
        except ConfigError as error:
            raise ConfigError(self._by_labels(str(error))) from None

    def _by_labels(self, sentence: str) -> str:
        """Call settings that the form sets as the form does."""
        if not sentence.startswith(COMMAND_LINE):
            return sentence  # of the file: the form has not set it
        sentence = sentence.replace(COMMAND_LINE, "the form", 1)
        for name, key in self.SETS.items():
            sentence = sentence.replace(key, f"{type(self).model_fields[name].title!r}")
        return sentence


class IngestForm(Form):
    """Which videos to take into a data set."""

    SETS: ClassVar[dict[str, str]] = {
        "dataset": "ingest.dataset",
        "metadata": "ingest.metadata",
        "workers": "jobs.ingest.workers",
    }

    dataset: Dataset = ""
    metadata: Metadata = ""
    workers: Workers = 0


class CacheForm(Form):
    """Which data set to decode into scene shards."""

    SETS: ClassVar[dict[str, str]] = {"dataset": "ingest.dataset", "workers": "jobs.cache.workers"}

    dataset: Dataset = ""
    workers: Workers = 0


class EncodeForm(Form):
    """Which data set's scenes to encode into latents."""

    SETS: ClassVar[dict[str, str]] = {"dataset": "ingest.dataset", "workers": "jobs.encode.workers"}

    dataset: Dataset = ""
    workers: Workers = 0


class TrainForm(Form):
    """What to train on, and for how long."""

    SETS: ClassVar[dict[str, str]] = {
        "dataset": "ingest.dataset",
        "run_id": "experiment.run_id",
        "max_train_steps": "hparams.max_train_steps",
        "learning_rate": "hparams.learning_rate",
        "lora_weights": "network.lora_weights",
    }

    dataset: Dataset = ""
    run_id: RunId = ""
    max_train_steps: Steps = 0
    learning_rate: float = Field(
        0.0, title="Learning rate", ge=0, le=1, description="Peak learning rate; 0: as deployed."
    )
    lora_weights: str = Field(
        "",
        title="Begin from",
        max_length=1000,
        description="A LoRA to begin from, such as run:RUN_ID or workspace:PATH; empty: as "
        "deployed.",
    )


class EvaluateForm(Form):
    """Which run to judge."""

    SETS: ClassVar[dict[str, str]] = {
        "dataset": "ingest.dataset",
        "run_id": "experiment.run_id",
        "num_pairs": "evaluate.num_pairs",
    }

    dataset: Dataset = ""
    run_id: RunId = ""
    num_pairs: int = Field(
        0,
        title="Pairs",
        ge=0,
        le=10_000,
        description="Most held-out pairs to render; 0: as deployed.",
    )


class RenderForm(Form):
    """Which pairs to render, and with what.

    Few rows may be pasted in place of a table: they are kept in the workspace.
    """

    SETS: ClassVar[dict[str, str]] = {
        "manifest": "render.manifest",
        "lora": "render.lora",
        "workers": "jobs.render.workers",
        "priority": "render.priority",
    }

    manifest: Manifest = ""
    rows: str = Field(
        "",
        title="Pasted rows",
        max_length=50_000,
        description="In place of a table, for few pairs: CSV with its header, or JSON Lines; "
        "images are workspace:PATH or addresses in an allowed folder.",
    )
    lora: str = Field(
        "",
        title="LoRA",
        max_length=1000,
        description="A LoRA, such as run:RUN_ID or workspace:PATH, or none for the base model; "
        "empty: as deployed.",
    )
    workers: Workers = 0
    priority: Literal["as deployed", "low", "normal", "urgent"] = Field(
        "as deployed",
        title="Priority among renders",
        description="Who comes first, part by part, where renders share workers.",
    )

    @field_validator("rows")
    @classmethod
    def _one_source(cls, rows: str, given: ValidationInfo) -> str:
        if given.data.get("manifest") and rows.strip():
            raise ValueError("are given beside a 'Table of pairs': empty one of the two")
        return rows

    def to_config(self) -> Config:
        """See `Form.to_config`; pasted rows are stored as a manifest in the workspace."""
        config = super().to_config()
        if not self.rows.strip():
            return config
        manifest = keep_pasted_rows(self.rows, open_store(config.workspace))
        render = config.render.model_copy(update={"manifest": manifest})
        return config.model_copy(update={"render": render})


class PipelineForm(Form):
    """The whole chain: which videos, how long to train, and which pairs to render at the end."""

    SETS: ClassVar[dict[str, str]] = {
        "dataset": "ingest.dataset",
        "metadata": "ingest.metadata",
        "run_id": "experiment.run_id",
        "max_train_steps": "hparams.max_train_steps",
        "manifest": "render.manifest",
    }

    dataset: Dataset = ""
    metadata: Metadata = ""
    run_id: RunId = ""
    max_train_steps: Steps = 0
    manifest: Manifest = ""


class NightlyForm(Form):
    """One night's retraining."""

    SETS: ClassVar[dict[str, str]] = {
        "begin_from": "nightly.begin_from",
        "max_gpu_hours": "nightly.max_gpu_hours",
    }

    begin_from: Literal["as deployed", "registry", "scratch"] = Field(
        "as deployed",
        title="Begin from",
        description="The LoRA in use (registry), or nothing (scratch).",
    )
    max_gpu_hours: float = Field(
        0.0,
        title="Budget in GPU hours",
        ge=0,
        le=100_000,
        description="The night ends cleanly when it is spent; 0: as deployed.",
    )
