"""Settings of rendering keyframe pairs."""

from pydantic import Field

from hvkf.settings.section import Precision, Section


class RenderConfig(Section):
    """How keyframe pairs become videos."""

    manifest: str | None = Field(
        None,
        description="Table of pairs: id, first_frame, last_frame, prompt and optional settings.",
    )
    lora: str | None = Field(
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
    seed: int = Field(0, description="Seed where the row gives none.")
    fps: int = Field(24, ge=1, description="Frame rate of the videos.")
    crf: int = Field(18, ge=0, le=51, description="H.264 quality; lower is better and larger.")
    precision: Precision = Field("bf16", description="Precision of the models' weights.")
    rows_per_part: int = Field(64, ge=1, description="Rows that one worker takes.")
    max_failed_fraction: float = Field(0.1, ge=0, le=1, description="Fail above this share.")
