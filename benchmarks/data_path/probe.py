"""A child process that is measured: a stage until its first item or its end, or bare libraries.

`probe.py begin|whole STAGE WORKSPACE PLAN` and `probe.py bare STAGE` print JSON. Nothing is
imported here before it is measured.
"""

import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

CHECKPOINT = Path(__file__).parents[2] / "hvkf" / "assets" / "hvkf-tiny"
FIRST_ITEM = {
    "cache": ("hvkf.stages.cache_group", "_run_group"),
    "encode": ("hvkf.stages.encode_segments", "_encode_segment"),
    "train": ("hvkf.training.loop:Loop", "_train"),
}
"""What a worker calls to do its first item, with all loaded."""


def figures() -> dict[str, float]:
    """Say what this process used until now: the CPU, the most memory, and that of the moment."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    peak_mb, present_mb = (int(status[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS"))
    return {"cpu_s": time.process_time(), "peak_mb": peak_mb, "present_mb": present_mb}


def forget_peak() -> None:
    """Let the peak count from the present on: what imports took for a moment would hide it."""
    Path("/proc/self/clear_refs").write_text("5")


def tell(found: dict[str, Any]) -> None:
    """Print the figures and end at once: taking a process down is not its start."""
    print(json.dumps(found), flush=True)
    os._exit(0)


def run_stage(stage: str, workspace: str, plan_file: str, *, to_the_end: bool) -> None:
    """Run a plan's parts as a worker does, and tell the figures at the first item or the end."""
    from hvkf import cli
    from hvkf.records import Plan
    from hvkf.storage import FolderStore

    plan = Plan.from_json(Path(plan_file).read_bytes())
    owner, name = FIRST_ITEM[stage]
    begun: dict[str, float] = {}
    work: Callable[..., Any] = getattr(pkgutil.resolve_name(owner), name)

    def first(*arguments: Any) -> Any:
        if not to_the_end:
            tell(figures())
        if not begun:
            begun.update(figures())
            forget_peak()
        return work(*arguments)

    with patch.object(pkgutil.resolve_name(owner), name, first):
        cli.stage_module(stage).run(plan, FolderStore(Path(workspace)), plan.parts)
    tell({**figures(), "begun_mb": begun["present_mb"], "begun_cpu_s": begun["cpu_s"]})


def load_bare(stage: str) -> None:
    """Import the libraries that a stage needs and load its models, without hvkf."""
    import av
    import cv2
    import numpy
    import pydantic
    import streaming

    kept: list[Any] = [av, cv2, numpy, pydantic, streaming]
    if stage == "encode":
        from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
            AutoencoderKLHunyuanVideo,
        )
        from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, LlamaModel

        kept += [
            AutoencoderKLHunyuanVideo.from_pretrained(CHECKPOINT, subfolder="vae"),
            LlamaModel.from_pretrained(CHECKPOINT, subfolder="text_encoder"),
            CLIPTextModel.from_pretrained(CHECKPOINT, subfolder="text_encoder_2"),
            AutoTokenizer.from_pretrained(CHECKPOINT, subfolder="tokenizer"),
            CLIPTokenizer.from_pretrained(CHECKPOINT, subfolder="tokenizer_2"),
        ]
    if stage == "train":
        import accelerate
        from diffusers.models.transformers.transformer_hunyuan_video import (
            HunyuanVideoTransformer3DModel,
        )
        from diffusers.optimization import get_scheduler
        from peft import LoraConfig

        model = HunyuanVideoTransformer3DModel.from_pretrained(CHECKPOINT, subfolder="transformer")
        model.add_adapter(LoraConfig(r=16, target_modules="all-linear"))
        kept += [accelerate.Accelerator(cpu=True), get_scheduler, model]
    tell(figures())


def main() -> None:
    """Do what the arguments say."""
    kind, stage, *rest = sys.argv[1:]
    if kind == "bare":
        load_bare(stage)
    workspace, plan = rest
    run_stage(stage, workspace, plan, to_the_end=kind == "whole")


if __name__ == "__main__":
    main()
