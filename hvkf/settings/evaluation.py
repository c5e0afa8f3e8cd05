"""Settings of judging a checkpoint."""

from pydantic import Field

from hvkf.settings.section import Precision, Section


class EvaluateConfig(Section):
    """How a checkpoint is judged on held-out pairs."""

    num_pairs: int = Field(8, ge=1, description="Most pairs of held-out clips to render.")
    steps: int = Field(30, ge=1, description="Sampling steps.")
    guidance: float = Field(6.0, ge=0, description="Embedded guidance.")
    seed: int = Field(0, description="Seed of the noise.")
    precision: Precision = Field("bf16", description="Precision of the models' weights.")
    pairs_per_part: int = Field(64, ge=1, description="Pairs that one worker takes.")
    max_failed_fraction: float = Field(0.0, ge=0, le=1, description="Fail above this share.")
