"""Settings of rendering keyframe pairs."""

from typing import Literal, Self

from pydantic import Field, model_validator

from hvkf.settings.section import PackedFormat, PathText, Precision, Section


class RenderChecks(Section):
    """What a video must keep to; those that do not are marked, and made again if asked."""

    min_keyframe_psnr_db: float | None = Field(
        None, ge=0, description="Mark a video whose worst keyframe is below this likeness."
    )
    max_end_jump: float | None = Field(
        None, ge=0, description="Mark a last step larger than this many times the usual step."
    )
    max_colour_drift: float | None = Field(
        None, ge=0, description="Mark mean colours that leave the keyframes' by more levels of 255."
    )
    max_freeze: float | None = Field(
        None, ge=0, le=1, description="Mark a video that stands still for more than this share."
    )
    retries: int = Field(
        0, ge=0, le=10, description="Further seeds to try for a marked video; all are kept."
    )


class RenderSpeed(Section):
    """What makes rendering faster or smaller, and what it costs; all of it is off by default."""

    first_block_cache: float | None = Field(
        None, gt=0, description="Approximate: skip a step whose first block changed by less."
    )
    taylorseer: int | None = Field(
        None, ge=2, description="Approximate: compute every n-th step, extrapolate the others."
    )
    fp8_layerwise: bool = Field(
        False,
        description="Approximate: keep the transformer's weights in 8 bits without scales, but for "
        "embedders and the layers that modulate (diffusers' layerwise casting).",
    )
    packed_weights: PackedFormat | None = Field(
        None,
        description="Approximate: keep the blocks' weights in 8 bits (fp8, int8) or 4 (nf4, which "
        "needs bitsandbytes).",
    )
    vae_tile: int | None = Field(
        None,
        ge=64,
        multiple_of=32,
        description="Approximate: side of the tiles that the VAE takes, in pixels; left out: 256.",
    )
    offload_encoders: bool = Field(
        False,
        description="Exact, slower: text encoders and VAE wait in main memory until they are used.",
    )
    group_offload: bool = Field(
        False, description="Exact, slower: keep weights in main memory, for small GPUs."
    )
    compile_blocks: bool = Field(
        False, description="Exact but for rounding: compile blocks, once per shape; needs g++."
    )
    batch_size: int = Field(
        1, ge=1, description="Exact but for rounding: rows of equal shape sampled together."
    )

    @model_validator(mode="after")
    def _one_cache(self) -> Self:
        if self.first_block_cache is not None and self.taylorseer is not None:
            raise ValueError("set first_block_cache or taylorseer, not both")
        if self.fp8_layerwise and self.packed_weights is not None:
            raise ValueError("set fp8_layerwise or packed_weights, not both")
        return self

    @property
    def changes_weights(self) -> bool:
        """Whether the transformer's weights are stored, placed or compiled in another way."""
        is_packed = self.fp8_layerwise or self.packed_weights is not None
        return is_packed or self.group_offload or self.compile_blocks

    @property
    def approximations(self) -> dict[str, float]:
        """The settings that change what is rendered by more than rounding."""
        chosen = {
            "first_block_cache": self.first_block_cache,
            "taylorseer": self.taylorseer,
            "fp8_layerwise": 1 if self.fp8_layerwise else None,
            f"packed_{self.packed_weights}": 1 if self.packed_weights else None,
            "vae_tile": self.vae_tile,
        }
        return {name: value for name, value in chosen.items() if value is not None}


class RenderConfig(Section):
    """How keyframe pairs become videos."""

    manifest: PathText | None = Field(
        None,
        description="Table of pairs: id, first_frame, last_frame, prompt and optional settings.",
    )
    allowed_folders: tuple[PathText, ...] = Field(
        (), description="Folders or s3:// prefixes, beside the manifest's, that images may lie in."
    )
    follow_links: bool = Field(
        False,
        description="Take images that links lead out of their folder to, as in Hugging Face's "
        "caches; they are refused otherwise.",
    )
    keyframes: Literal["ends", "any"] = Field(
        "ends", description="Which keyframes rows may have: any, where the LoRA was trained so."
    )
    lora: PathText | None = Field(
        None,
        description="registry:NAME (what is in use), run:RUN_ID[/step-N], a file or folder, or "
        "none; left out: this run's.",
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="Alpha of a LoRA file that records none."
    )
    width: int = Field(1280, ge=16, description="Width where the row gives none.")
    height: int = Field(720, ge=16, description="Height where the row gives none.")
    num_frames: int = Field(33, ge=1, description="Frames where the row gives none; 4k+1.")
    steps: int = Field(50, ge=1, description="Sampling steps where the row gives none.")
    guidance: float = Field(6.0, ge=0, description="Embedded guidance where the row gives none.")
    negative_prompt: str = Field("", description="What to keep away from where the row says none.")
    true_cfg_scale: float = Field(
        1.0, ge=1, description="Weight of the negative prompt; 1 is none, more doubles the time."
    )
    seed: int = Field(0, description="Seed where the row gives none.")
    fps: int = Field(24, ge=1, description="Frame rate of the videos.")
    crf: int = Field(18, ge=0, le=51, description="H.264 quality; lower is better and larger.")
    keep_frames: bool = Field(False, description="Keep every frame as PNG beside the video.")
    keep_latents: bool = Field(False, description="Keep the latents (safetensors) beside it.")
    precision: Precision = Field("bf16", description="Precision of the models' weights.")
    part_minutes: float = Field(
        20.0, gt=0, description="Minutes of work that one worker takes, where the cost is known."
    )
    rows_per_part: int = Field(
        64, ge=1, description="Rows that one worker takes, where the cost is not known yet."
    )
    priority: Literal["low", "normal", "urgent"] = Field(
        "normal", description="Who comes first, part by part, where renders share workers."
    )
    urgent_within_s: float = Field(
        120.0,
        ge=0,
        description="Seconds that somebody more urgent waits amid a row that is rendered, which is "
        "given back then; at the end of a row a part gives way at once.",
    )
    weight: float = Field(
        1.0, gt=0, description="Share of the workers against other renders of the same priority."
    )
    claim_s: float = Field(
        120.0, gt=0, description="Seconds after which a silent worker's row may be taken by others."
    )
    max_tries: int = Field(3, ge=1, description="Failures after which a row is set aside.")
    max_failed_fraction: float = Field(0.1, ge=0, le=1, description="Fail above this share.")
    checks: RenderChecks = RenderChecks()
    speed: RenderSpeed = RenderSpeed()
