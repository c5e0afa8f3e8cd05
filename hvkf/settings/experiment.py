"""Settings of the run as a whole and of the checkpoint it starts from."""

from typing import Literal

from pydantic import Field

from hvkf.settings.section import NeededPath, PathText, Section


class ExperimentConfig(Section):
    """What a training run is called, where it goes, and its random seed."""

    name: str = Field("i2v", description="Name of the experiment; begins a run id made up for you.")
    run_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run's folder; left out, made from the name and a digest.",
    )
    random_seed: int = Field(42, description="Seed of all random draws.")
    output_dirpath: PathText | None = Field(
        None, description="The reference's output folder: the workspace, where none is set."
    )
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        ("tensorboard",), description="Trackers by accelerate's names: tensorboard, wandb, mlflow."
    )
    log_every_n_steps: int = Field(
        10,
        ge=1,
        description="Steps between fetching losses from the GPU, which then waits for the host; "
        "trackers get each step's all the same.",
    )
    ic_debug: bool = Field(False, description="Of the reference's files; has no effect.")


class ModelConfig(Section):
    """Which HunyuanVideo checkpoint to use, and how."""

    pretrained_model_name_or_path: NeededPath = Field(
        "hunyuanvideo-community/HunyuanVideo",
        description="A hub id, a folder, workspace:PATH for a folder in the workspace, or "
        "hvkf-tiny, which comes with hvkf.",
    )
    revision: str | None = Field(None, description="Revision of a hub id.")
    variant: str | None = Field(None, description="Weights variant, such as bf16.")
    flow_shift: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Shift of sampling's noise levels towards noise; left out, that of the "
        "checkpoint's scheduler (7 in HunyuanVideo).",
    )
    attention: Literal["auto", "sdpa", "flash", "sage"] = Field(
        "auto",
        description="Attention kernel; auto takes the best that is installed, and says which.",
    )
