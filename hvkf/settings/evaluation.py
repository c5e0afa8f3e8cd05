"""Settings of judging a checkpoint."""

from typing import Literal

from pydantic import Field

from hvkf.settings.section import PathText, Precision, Section

Extra = Literal["lpips", "clip", "fvd"]
GateFigure = Literal["keyframe_psnr_db", "keyframe_ssim", "clip_psnr_db", "clip_ssim"]


class EvaluateConfig(Section):
    """How a checkpoint is judged on held-out pairs."""

    num_pairs: int = Field(
        16, ge=1, description="Most pairs of held-out clips; below 8 source videos: no verdict."
    )
    steps: int = Field(30, ge=1, description="Sampling steps.")
    guidance: float = Field(6.0, ge=0, description="Embedded guidance.")
    seed: int = Field(0, description="Seed of the noise.")
    precision: Precision = Field("bf16", description="Precision of the models' weights.")
    extras: tuple[Extra, ...] = Field(
        (), description="Further figures that need weights of their own: lpips, clip, fvd."
    )
    apart: tuple[str, ...] = Field(
        (),
        description="Held-out videos, as in the table (* stands for any letters), of which one "
        "pair each is rendered and shown below the others, but counts in no figure.",
    )
    apart_reason: str = Field(
        "These pairs count in no figure.", description="What the report says above them."
    )
    extras_weights: PathText | None = Field(
        None, description="Folder of the worker's machine with the weights of evaluate.extras."
    )
    pairs_per_part: int = Field(64, ge=1, description="Pairs that one worker takes.")
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="Fail above this share.")


class GateConfig(Section):
    """What a LoRA must show on held-out pairs to come into use."""

    registry: str = Field("default", description="Name in the registry that it would be used by.")
    better: tuple[GateFigure, ...] = Field(
        ("clip_psnr_db",),
        description="Figures that must rise: the whole 95% interval of the gain above 0.",
    )
    not_worse: tuple[GateFigure, ...] = Field(
        ("keyframe_psnr_db",),
        description="Figures that must not fall: the interval above minus their margin.",
    )
    margin_db: float = Field(0.25, ge=0, description="How far a PSNR of not_worse may fall.")
    margin_ssim: float = Field(0.005, ge=0, description="How far an SSIM of not_worse may fall.")
