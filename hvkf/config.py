"""The configuration: one frozen model for YAML files, command-line overrides and Prefect's forms.

The sections `experiment, model, data, network, hparams, checkpointing, ddp_kwargs` have the keys of
the reference's `config_defaults.yaml`, with its shipped values as defaults.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Precision = Literal["fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ExperimentConfig(Section):
    """What a training run is called, where it goes, and its random seed."""

    name: str = Field("i2v", description="Name of the experiment; begins a run id made up for you.")
    run_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run's folder; left out, made from the name and a digest.",
    )
    random_seed: int = Field(42, description="Seed of all random draws.")
    output_dirpath: str | None = Field(
        None, description="The reference's output folder: the workspace, where none is set."
    )
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="Trackers by accelerate's names: tensorboard, wandb, mlflow."
    )
    ic_debug: bool = Field(False, description="Of the reference's files; has no effect.")


class ModelConfig(Section):
    """Which HunyuanVideo checkpoint to use, and how."""

    pretrained_model_name_or_path: str = Field(
        "hunyuanvideo-community/HunyuanVideo",
        description="A hub id, a folder, or workspace:PATH for a folder in the workspace.",
    )
    revision: str | None = Field(None, description="Revision of a hub id.")
    variant: str | None = Field(None, description="Weights variant, such as bf16.")
    attention: Literal["auto", "sdpa", "flash", "sage"] = Field(
        "auto",
        description="Attention kernel; auto takes the best that is installed, and says which.",
    )


class IngestConfig(Section):
    """Where the videos are, and how they become clips."""

    dataset: str = Field(
        "default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the data set."
    )
    metadata: str = Field(
        "metadata.csv", description="Table of videos and captions: CSV, JSON, JSONL or Parquet."
    )
    base_dir: str | None = Field(
        None, description="Folder that video paths are relative to; left out, the table's folder."
    )
    video_column: str = Field("video_file", description="Column of the video's path.")
    caption_column: str = Field("caption", description="Column of the caption.")
    scene_split: Literal["none", "content", "adaptive"] = Field(
        "none", description="Cut videos into scenes with this PySceneDetect detector."
    )
    scene_threshold: float | None = Field(
        None, gt=0, description="Threshold of the detector; left out, the detector's own."
    )
    min_scene_frames: int = Field(
        15, ge=1, description="No cut follows another sooner; the last scene may be shorter."
    )
    target_fps: float | None = Field(
        None, gt=0, description="Resample to this frame rate; left out, frames stay as they are."
    )
    holdout_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of source videos kept from training, for evaluation."
    )
    min_holdout: int = Field(
        0, ge=0, description="Hold out at least this many source videos, however few there are."
    )
    max_failed_fraction: float = Field(
        0.5, ge=0, le=1, description="Fail when more than this share of videos cannot be read."
    )


class CacheConfig(Section):
    """Which frames of which size become training samples."""

    bucket_reso: tuple[str, ...] = Field(
        (), description="Buckets as WxHxF: sizes divisible by 16, F = 4k+1 frames."
    )
    min_bucket_count: int = Field(1, ge=1, description="Buckets with fewer clips are dropped.")
    head_frame: int = Field(0, ge=0, description="Frames to skip at a clip's beginning.")
    frames: Literal["head", "center", "uniform", "windows"] = Field(
        "head",
        description="Which frames of a clip: its head, centre, evenly spread, or all windows.",
    )
    no_upscale: bool = Field(False, description="Do not enlarge clips smaller than the bucket.")
    compression: Literal["none", "zstd"] = Field("zstd", description="Lossless, per shard.")
    segment_mb: int = Field(
        512,
        ge=1,
        description="Uncompressed size of a segment's pixels, in MiB, not exceeded by much.",
    )
    segments_per_part: int = Field(4, ge=1, description="Groups of clips that one worker takes.")
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="Fail when more than this share of items cannot be made."
    )

    @field_validator("bucket_reso", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value


class EncodeConfig(Section):
    """How scenes become latents and text embeddings."""

    precision: Precision = Field("bf16", description="Precision of the encoders' weights.")
    stored: Precision = Field("bf16", description="Precision in which latents are stored.")
    segments_per_part: int = Field(4, ge=1, description="Segments that one worker takes.")
    seed: int = Field(0, description="Seed of the posterior samples.")
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="Fail when more than this share of items cannot be encoded."
    )


class DataLoaderConfig(Section):
    """How batches are loaded."""

    drop_last: bool = Field(False, description="Drop the incomplete batch of each bucket.")
    num_workers: int = Field(0, ge=0, description="Processes that load batches ahead.")
    persistent_workers: bool = Field(True, description="Keep them from epoch to epoch.")
    pin_memory: bool = Field(True, description="Load into page-locked memory on GPU machines.")
    prefetch_factor: int = Field(2, ge=1, description="Batches that each process loads ahead.")


class StreamingConfig(Section):
    """The reference's settings of its streaming loader; order and batches are our own plan."""

    cache_limit: str | None = Field(
        None, description="Most bytes of shards to keep on this machine."
    )
    download_timeout: float = Field(12000, gt=0, description="Of the reference; has no effect.")
    num_canonical_nodes: int | None = Field(None, description="Of the reference; has no effect.")
    shuffle: bool = Field(True, description="Another order in each epoch.")
    batching_method: str = Field("per_stream", description="Of the reference; has no effect.")


class DataConfig(Section):
    """What to train on."""

    local: tuple[str, ...] | None = Field(
        None,
        description="Folders of latent shards made by the reference; left out, the workspace's.",
    )
    remote: tuple[str, ...] | None = Field(None, description="The same in object storage.")
    batch_size: int = Field(1, ge=1, description="Samples per process and step.")
    video_key: str = Field("video", description="Of the reference; has no effect.")
    caption_key: str = Field("caption", description="Of the reference; has no effect.")
    latents_key: str = Field("latents", description="Column of the video's latents.")
    prompt_embeds_key: str = Field("prompt_embeds", description="Column of Llama's embeddings.")
    latents_cond_key: str = Field("latents_cond", description="Column of the condition's latents.")
    prompt_attention_mask_key: str = Field(
        "prompt_attention_mask", description="Column of the mask."
    )
    pooled_prompt_embeds_key: str = Field(
        "pooled_prompt_embeds", description="Column of CLIP's pooled embedding."
    )
    dataloader_kwargs: DataLoaderConfig = DataLoaderConfig()
    streaming_kwargs: StreamingConfig = StreamingConfig()

    @field_validator("local", "remote", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class NetworkConfig(Section):
    """The LoRA."""

    lora_rank: int = Field(128, ge=1, description="Rank.")
    lora_alpha: float = Field(128, gt=0, description="Scale times rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the down projection.")
    init_lora_weights: bool | Literal["gaussian", "olora", "pissa"] = Field(
        True, description="How the LoRA's weights begin, as peft names it."
    )
    lora_weights: str | None = Field(
        None,
        description="Begin from a LoRA of this rank and these layers: a .safetensors or .sft file, "
        "a folder, run:RUN_ID[/step-N] or workspace:PATH.",
    )
    train_norm_layers: bool = Field(False, description="Train the norm_q/k/added weights as well.")
    lora_layers: str = Field(
        "all-linear", description="all-linear, or names of layers joined by commas."
    )
    target_modules: tuple[str, ...] | None = Field(
        None, description="Exact module names, in place of lora_layers."
    )


class FlowMatchConfig(Section):
    """Which noise levels to train, and how to weigh them."""

    weighting_scheme: Literal["none", "sigma_sqrt", "cosmap"] = Field(
        "none", description="Weight of a sample's loss by its sigma."
    )
    timestep_sampling: Literal["uniform", "sigmoid", "logit_normal"] = Field(
        "logit_normal", description="Distribution of sigma before the shift."
    )
    sigmoid_scale: float = Field(1.0, gt=0, description="Scale inside the sigmoid.")
    logit_mean: float = Field(0.0, description="Mean of the logit-normal.")
    logit_std: float = Field(1.0, gt=0, description="Standard deviation of the logit-normal.")
    discrete_flow_shift: float = Field(7.0, gt=0, description="Shift towards noise.")

    @field_validator("timestep_sampling", mode="before")
    @classmethod
    def _explain_sigma(cls, value: Any) -> Any:
        if value == "sigma":
            raise ValueError(
                "'sigma' is the reference's default but none of its schemes: write logit_normal "
                "(its shipped configuration), uniform or sigmoid"
            )
        return value


class EmaConfig(Section):
    """Exponential moving average of the trained weights."""

    use_ema: bool = Field(True, description="Keep an average and save it as the result.")
    ema_decay: float = Field(0.99, gt=0, lt=1, description="Decay per update.")
    ema_device: Literal["accelerator", "cpu"] = Field("accelerator", description="Where it lies.")
    ema_cpu_only: bool = Field(False, description="Of the reference; has no effect.")
    ema_foreach_disable: bool = Field(False, description="Of the reference; has no effect.")
    ema_update_interval: int | None = Field(None, ge=1, description="Steps between updates.")


class HparamsConfig(Section):
    """How to train."""

    caption_dropout_p: float = Field(
        0.0, ge=0, le=1, description="Chance to train without caption."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("bf16", description="Compute precision.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations: less memory.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate.")
    optimizer_type: str = Field(
        "optimi-stableadamw",
        description="One of adam, adamw, optimi-adamw, optimi-stableadamw, bnb-adamw8bit, "
        "bnb-lion8bit, came.",
    )
    optimizer_args: tuple[str, ...] = Field(
        ("weight_decay=1e-2", "eps=1e-8", "betas=(0.9, 0.95)"),
        description="Further arguments of the optimizer, as key=value.",
    )
    max_grad_norm: float = Field(0.0, ge=0, description="Clip gradients at this; 0: do not.")
    grad_clip_method: Literal["norm", "value"] = Field("norm", description="What to clip.")
    lr_scheduler: str = Field("constant_with_warmup", description="As diffusers names it.")
    lr_warmup_steps: int = Field(100, ge=0, description="Steps of warm-up.")
    lr_scheduler_num_cycles: int = Field(1, ge=1, description="Cycles of a cosine with restarts.")
    lr_scheduler_power: float = Field(0.9, gt=0, description="Power of a polynomial.")
    guidance_scale: float = Field(1.0, ge=0, description="Embedded guidance while training.")
    num_train_epochs: int | None = Field(1, ge=1, description="Passes over the data.")
    max_train_steps: int | None = Field(
        None, ge=1, description="Optimizer steps, instead of epochs."
    )
    gradient_precision: Literal["accelerator", "fp32"] = Field(
        "accelerator", description="fp32: the LoRA and its gradients in fp32."
    )
    flow_match: FlowMatchConfig = FlowMatchConfig()
    ema: EmaConfig = EmaConfig()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _unquoted_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # what YAML makes of an unquoted no


class ValidationConfig(Section):
    """Loss on held-out items, at noise and noise levels that never change."""

    every_n_steps: int | None = Field(
        None, ge=1, description="Steps between; left out: at checkpoints."
    )
    num_items: int = Field(16, ge=0, description="Most held-out items to use; 0: no validation.")
    sigmas: tuple[float, ...] = Field(
        (0.1, 0.3, 0.5, 0.7, 0.9), description="Noise levels (after the shift)."
    )


class CheckpointingConfig(Section):
    """When to save, what to keep, where to go on."""

    save_every_n_steps: int | None = Field(500, ge=1, description="Steps between checkpoints.")
    save_last_n_steps: int | None = Field(
        1500, ge=0, description="Keep checkpoints this many steps back; left out: keep all."
    )
    resume_from_checkpoint: str | None = Field(
        None,
        description="Left out or 'latest': the run's newest whole checkpoint; or step-00000500.",
    )


class DdpConfig(Section):
    """PyTorch's data-parallel settings."""

    backend: Literal["nccl", "gloo"] | None = Field(None, description="Left out: nccl on GPUs.")
    find_unused_parameters: bool = Field(False, description="Of DistributedDataParallel.")
    gradient_as_bucket_view: bool = Field(False, description="Of DistributedDataParallel.")
    static_graph: bool = Field(False, description="Of DistributedDataParallel.")


class EvaluateConfig(Section):
    """How a checkpoint is judged on held-out pairs."""

    num_pairs: int = Field(8, ge=1, description="Most pairs of held-out clips to render.")
    steps: int = Field(30, ge=1, description="Sampling steps.")
    guidance: float = Field(6.0, ge=0, description="Embedded guidance.")
    seed: int = Field(0, description="Seed of the noise.")
    precision: Precision = Field("bf16", description="Precision of the models' weights.")
    pairs_per_part: int = Field(64, ge=1, description="Pairs that one worker takes.")
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="Fail above this share.")


class RenderConfig(Section):
    """How keyframe pairs become videos."""

    manifest: str | None = Field(
        None,
        description="Table of pairs: id, first_frame, last_frame, prompt and optional settings.",
    )
    lora: str | None = Field(
        None,
        description="A LoRA file or folder, run:RUN_ID[/step-N], or none; left out: this run's.",
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="Alpha of a LoRA file that records none."
    )
    width: int = Field(1280, ge=16, description="Width where the row gives none.")
    height: int = Field(720, ge=16, description="Height where the row gives none.")
    num_frames: int = Field(33, ge=1, description="Frames where the row gives none; 4k+1.")
    steps: int = Field(50, ge=1, description="Sampling steps where the row gives none.")
    guidance: float = Field(6.0, ge=0, description="Embedded guidance where the row gives none.")
    seed: int = Field(0, description="Seed where the row gives none.")
    fps: int = Field(24, ge=1, description="Frame rate of the videos.")
    crf: int = Field(18, ge=0, le=51, description="H.264 quality; lower is better and larger.")
    precision: Precision = Field("bf16", description="Precision of the models' weights.")
    rows_per_part: int = Field(64, ge=1, description="Rows that one worker takes.")
    max_failed_fraction: float = Field(0.1, ge=0, le=1, description="Fail above this share.")


class StageJobs(Section):
    """How a stage's work is spread over processes."""

    executor: Literal["local"] = Field("local", description="Where: processes of this machine.")
    workers: int = Field(1, ge=1, description="Processes (of train: ranks).")
    threads: int | None = Field(
        None, ge=1, description="CPU threads per process; left out: the machine's cores shared out."
    )
    max_attempts: int = Field(3, ge=1, description="Starts of a part that ends by a passing fault.")


class JobsConfig(Section):
    """How each stage's work is spread over processes."""

    cache: StageJobs = StageJobs()
    encode: StageJobs = StageJobs()
    train: StageJobs = StageJobs()
    evaluate: StageJobs = StageJobs()
    render: StageJobs = StageJobs()


class Config(Section):
    """All settings of all stages."""

    workspace: str = Field(
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
    evaluate: EvaluateConfig = EvaluateConfig()
    render: RenderConfig = RenderConfig()
    jobs: JobsConfig = JobsConfig()

    @model_validator(mode="after")
    def _output_folder_is_the_workspace(self) -> Self:
        folder = self.experiment.output_dirpath
        if folder is not None and "workspace" not in self.model_fields_set:
            return self.model_copy(update={"workspace": folder})
        return self
