"""Settings of where and how a stage's work runs."""

from typing import Literal

from pydantic import Field

from hvkf.settings.section import Section


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
