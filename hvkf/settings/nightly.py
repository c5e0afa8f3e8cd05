"""Settings of the nightly retraining."""

from typing import Literal

from pydantic import Field

from hvkf.settings.section import Section


class NightlyConfig(Section):
    """What a night retrains from, what it may cost, and whom it tells."""

    name: str = Field(
        "nightly",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name in the registry whose LoRA the nights improve.",
    )
    begin_from: Literal["registry", "scratch"] = Field(
        "registry", description="Train on from the LoRA in use, or from nothing each night."
    )
    max_gpu_hours: float = Field(
        24.0, gt=0, description="End the night cleanly when its jobs have used this much."
    )
    lease_minutes: float = Field(
        10.0, gt=0, description="A night whose process is silent for this long counts as ended."
    )
    webhook_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with the address to which the verdict is posted as JSON.",
        json_schema_extra={"deployed_only": True},
    )
    webhook_any_address: bool = Field(
        False,
        description="Post to link-local and metadata addresses of clouds as well.",
        json_schema_extra={"deployed_only": True},
    )
