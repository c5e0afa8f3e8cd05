"""Settings of training: the LoRA, the objective, the optimizer, checkpoints."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hvkf.errors import BadInput
from hvkf.settings.optimizers import known_name, parse_arguments
from hvkf.settings.section import PackedFormat, PathText, Section

Scheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
ALL_LINEAR = "all-linear"
# How the names of HunyuanVideo's linear layers end, whatever the number of its blocks.
LAYER_ENDS = (
    *("to_q", "to_k", "to_v", "0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("proj", "proj_in", "proj_out", "proj_mlp", "2", "linear", "linear_1", "linear_2"),
)


class NetworkConfig(Section):
    """The LoRA."""

    lora_rank: int = Field(128, ge=1, description="Rank.")
    lora_alpha: float = Field(128, gt=0, description="Scale times rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the down projection.")
    init_lora_weights: bool | Literal["gaussian", "olora", "pissa"] = Field(
        True, description="How the LoRA's weights begin, as peft names it."
    )
    lora_weights: PathText | None = Field(
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

    @field_validator("lora_layers", "target_modules")
    @classmethod
    def _are_layers(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is None or value == ALL_LINEAR:
            return value
        for name in value.split(",") if isinstance(value, str) else value:
            if name.strip().rpartition(".")[2] not in LAYER_ENDS:
                raise ValueError(
                    f"no linear layer of the transformer is called {name.strip()!r}: use "
                    "all-linear, or names such as to_q, to_k, to_v, to_out.0, proj_mlp"
                )
        return value


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
    compile_blocks: bool = Field(
        False,
        description="Exact but for rounding: compile the transformer's blocks; needs g++. Worth it "
        "where a run has far more steps than shapes.",
    )
    checkpoint_every_n_blocks: int = Field(
        1, ge=1, description="Recompute every n-th block only: faster, and more memory. Exact."
    )
    checkpoint_in_main_memory: bool = Field(
        False, description="Keep what blocks recompute from in main memory. Exact, slower."
    )
    weights_in_main_memory: bool = Field(
        False,
        description="Keep the blocks' frozen weights in main memory until a layer computes. Exact, "
        "slower; not with compile_blocks, nor with FSDP of all weights.",
    )
    packed_weights: PackedFormat | None = Field(
        None,
        description="Approximate: keep the frozen weights in 8 bits (fp8, int8) or 4 (nf4, which "
        "needs bitsandbytes).",
    )
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
    lr_scheduler: Scheduler = Field("constant_with_warmup", description="As diffusers names it.")
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

    @field_validator("optimizer_type")
    @classmethod
    def _is_optimizer(cls, value: str) -> str:
        try:
            known_name(value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("optimizer_args")
    @classmethod
    def _are_arguments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_arguments(value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def holds_frozen_weights(self) -> bool:
        """Whether the blocks' frozen weights are packed, or wait in main memory."""
        return self.packed_weights is not None or self.weights_in_main_memory

    @model_validator(mode="after")
    def _not_compiled(self) -> Self:
        if self.weights_in_main_memory and self.compile_blocks:
            raise ValueError("set weights_in_main_memory or compile_blocks, not both")
        return self

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


class ProfilingConfig(Section):
    """A trace of some steps by `torch.profiler`, for chrome://tracing or Perfetto."""

    first_step: int | None = Field(
        None, ge=1, description="Trace steps from this one; left out: none."
    )
    num_steps: int = Field(3, ge=1, description="How many steps to trace.")
    record_shapes: bool = Field(False, description="With the shapes of what is computed.")
    with_stack: bool = Field(False, description="With the lines of code that computed it.")


class DdpConfig(Section):
    """PyTorch's data-parallel settings."""

    backend: Literal["nccl", "gloo"] | None = Field(None, description="Left out: nccl on GPUs.")
    find_unused_parameters: bool = Field(False, description="Of DistributedDataParallel.")
    gradient_as_bucket_view: bool = Field(False, description="Of DistributedDataParallel.")
    static_graph: bool = Field(False, description="Of DistributedDataParallel.")
