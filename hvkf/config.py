"""The configuration: one frozen model for YAML files, command-line overrides and Prefect's forms.

The sections `experiment, model, data, network, hparams, checkpointing, ddp_kwargs` have the keys of
the reference's `config_defaults.yaml`, with its shipped values as defaults.
"""

from typing import Self

from pydantic import Field, model_validator

from hvkf.settings.data import CacheConfig, DataConfig, EncodeConfig, IngestConfig
from hvkf.settings.evaluation import EvaluateConfig, GateConfig
from hvkf.settings.experiment import ExperimentConfig, ModelConfig
from hvkf.settings.jobs import JobsConfig
from hvkf.settings.nightly import NightlyConfig
from hvkf.settings.rendering import RenderConfig
from hvkf.settings.section import NeededPath, Section
from hvkf.settings.training import (
    CheckpointingConfig,
    DdpConfig,
    HparamsConfig,
    NetworkConfig,
    ProfilingConfig,
    ValidationConfig,
)


class Config(Section):
    """All settings of all stages."""

    workspace: NeededPath = Field(
        "workspace", description="Where everything is kept: a folder or s3://bucket/prefix."
    )
    experiment: ExperimentConfig = ExperimentConfig()
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    cache: CacheConfig = CacheConfig()
    encode: EncodeConfig = EncodeConfig()
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    hparams: HparamsConfig = HparamsConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    ddp_kwargs: DdpConfig = DdpConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    render: RenderConfig = RenderConfig()
    nightly: NightlyConfig = NightlyConfig()
    jobs: JobsConfig = JobsConfig()

    @model_validator(mode="after")
    def _output_folder_is_the_workspace(self) -> Self:
        folder = self.experiment.output_dirpath
        if folder is not None and "workspace" not in self.model_fields_set:
            return self.model_copy(update={"workspace": folder})
        return self
