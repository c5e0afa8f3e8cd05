"""docs/from-the-reference.md: it leaves nothing of the reference out, and its commands run."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from hvkf.cli import STAGES, app
from hvkf.command_options import split_overrides
from hvkf.config_file import known_keys, load_config
from hvkf.storage import FolderStore
from hvkf.training.runs import read_result
from tests.reference_caches import (
    latent_record,
    video_record,
    write_latents_cache,
    write_videos_cache,
)
from tests.workspaces import GOLDEN, TINY, write_dataset

PAGE = Path(__file__).parents[1] / "docs" / "from-the-reference.md"
TEXT = PAGE.read_text()
CONFIG = GOLDEN / "reference_config_defaults.yaml"
COMMANDS = [
    line
    for block in re.findall(r"```shell\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
HVKF_COMMANDS = [line for line in COMMANDS if line.startswith("hvkf ")]
RANKS = 2

# What there is in the reference's repository.
FILES = """
tools/hv_cache_dataset.py tools/hv_precompute_latents.py tools/hv_precompute_latents_dist.py
hv_train_control_lora.py hv_control_lora_inference.py notebooks/000-inference.ipynb setup_env.sh
config.py configs/config_defaults.yaml configs/accelerate/uncompiled_8.yaml
configs/accelerate/uncompiled_8_ds.yaml configs/deepspeed/zero_stage2_config.json
mds_dataloaders.py optim.py ema.py attn_processor.py
"""
OPTIONS = """
--csv --base_dir --video_column --caption_column --output_dir --bucket_reso --debug
--min_bucket_count --head_frame --mds_data_path --pretrained_model_name_or_path
--mds_shard_compression --recursive --device --dtype --model --lora --frame1 --frame2 --prompt
--height --width --frames --steps --guidance --seed --output --config_path
"""
COLUMNS = """
item_key caption_str video_arr latents latents_cond prompt_embeds prompt_attention_mask
"""
# Those of its settings' classes that its config_defaults.yaml leaves out.
FURTHER_KEYS = """
experiment.ic_debug data.remote data.repeat data.choose data.streaming_kwargs.cache_limit
data.streaming_kwargs.download_timeout network.target_modules hparams.grad_clip_method
hparams.lr_scheduler_num_cycles hparams.lr_scheduler_power hparams.ema.ema_foreach_disable
hparams.ema.ema_cpu_only hparams.ema.ema_update_interval ddp_kwargs.backend
ddp_kwargs.find_unused_parameters ddp_kwargs.gradient_as_bucket_view ddp_kwargs.static_graph
"""


def flat(settings: dict[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("name", [*FILES.split(), *OPTIONS.split(), *COLUMNS.split()])
def test_every_script_option_and_column_of_the_reference_is_on_the_page(name: str) -> None:
    assert re.search(rf"`[^`\n]*(?<![\w.]){re.escape(name)}(?!\w)[^`\n]*`", TEXT)


@pytest.mark.parametrize("key", [*flat(yaml.safe_load(CONFIG.read_text())), *FURTHER_KEYS.split()])
def test_every_key_of_the_references_settings_is_one_here_or_is_said_not_to_be(key: str) -> None:
    assert key in known_keys() or f"`{key}`" in TEXT


def test_every_setting_that_the_page_names_exists() -> None:
    sections = {key.split(".")[0] for key in known_keys() if "." in key}
    named = set(re.findall(r"`([a-z_]+\.[a-z_.]+[a-z])`", TEXT))
    settings = {name for name in named if name.split(".")[0] in sections}
    assert len(settings) > 25
    refused = {"data.repeat", "data.choose"}
    files = {"config.py"}
    assert settings - files - refused <= set(known_keys())
    assert not refused & set(known_keys())


def test_its_ten_faults_are_listed_and_each_has_a_test() -> None:
    listed = [int(number) for number in re.findall(r"^(\d+)\. ", TEXT, re.MULTILINE)]
    assert listed == list(range(1, 11))
    tests = (Path(__file__).parent / "test_faults_of_the_reference.py").read_text()
    assert {int(number) for number in re.findall(r"def test_fault_(\d+)_", tests)} == set(listed)


@pytest.mark.parametrize("line", HVKF_COMMANDS)
def test_every_command_on_the_page_is_one(line: str) -> None:
    words, overrides = split_overrides(shlex.split(line)[1:])
    command = typer.main.get_command(app)
    name, *arguments = words
    chosen = command.get_command(typer.Context(command), name)  # type: ignore[attr-defined]
    chosen.make_context(name, arguments)
    load_config(CONFIG, overrides)


def test_the_page_shows_every_command_of_the_reference() -> None:
    shown = {shlex.split(line)[1] for line in HVKF_COMMANDS}
    assert {"ingest", "cache", "encode", "train", "infer", "import-cache", "export-lora"} <= shown
    assert shown - set(STAGES) == {"infer", "import-cache", "export-lora"}


def prepare(folder: Path) -> None:
    """Put what the commands name into a folder: small, and under the names of the page."""
    write_dataset(folder / "dataset", 3)
    bucket = "32x32x5"
    for rank in range(RANKS):
        records = [latent_record(10 * rank + number, bucket) for number in range(2)]
        write_latents_cache(folder / "mds_cache_latents" / f"{bucket}_{rank:02d}", records)
    videos = [video_record(number, bucket) for number in range(2)]
    write_videos_cache(folder / "mds_cache" / bucket, videos)
    for number, name in enumerate(("first.png", "last.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "i2v.sft").write_bytes((GOLDEN / "lora_r4_a8.sft").read_bytes())
    settings = yaml.safe_load(CONFIG.read_text())
    settings["model"]["pretrained_model_name_or_path"] = str(TINY)
    settings["network"] |= {"lora_rank": 4, "lora_alpha": 8}
    settings["hparams"] |= {"max_train_steps": 2, "lr_warmup_steps": 1}
    settings["data"]["dataloader_kwargs"]["num_workers"] = 0
    (folder / "config_defaults.yaml").write_text(yaml.safe_dump(settings))
    launch = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "gpu_ids": "all",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": 8,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    (folder / "uncompiled_8.yaml").write_text(yaml.safe_dump(launch))


def made_small(line: str) -> list[str]:
    """Put small sizes and the tiny checkpoint into a command of the page."""
    for old, new in (
        ("hunyuanvideo-community/HunyuanVideo", str(TINY)),
        ("1280x720x33,960x544x33", "32x32x5,32x48x9"),
        ("1280x720x33", "32x32x5"),
        ("min_bucket_count=100", "min_bucket_count=1"),
        ("workers=8", f"workers={RANKS}"),
        ("--num_processes 8", f"--num_processes {RANKS}"),
        ("--lora-alpha 128", "--lora-alpha 8 --precision fp32"),
        (
            "--frames 33 --height 960 --width 544 --steps 50",
            "--frames 5 --height 32 --width 32 --steps 2",
        ),
    ):
        line = line.replace(old, new)
    program, *arguments = shlex.split(line)
    modules = {"hvkf": "hvkf.cli", "accelerate": "accelerate.commands.accelerate_cli"}
    return [sys.executable, "-m", modules[program], *arguments]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_page_run_in_its_order(tmp_path: Path) -> None:
    prepare(tmp_path)
    said = {}
    for line in COMMANDS:
        ended = subprocess.run(
            made_small(line), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
        said[line] = ended.stdout
    workspace = FolderStore(tmp_path / "i2v_outputs")
    for run_id in ("as_it_is", "my_first_run", "goes_on", "by_accelerate"):
        result = read_result(workspace, run_id)
        assert result is not None
        assert result.num_items == 4
    assert "output.mp4" in {file.name for file in tmp_path.iterdir()}
    index = json.loads((tmp_path / "fused" / "transformer" / "config.json").read_text())
    assert index["in_channels"] == 32
    for name in ("to_the_reference/i2v.sft", "to_comfyui/keyframes.safetensors"):
        assert (tmp_path / name).stat().st_size > 0
