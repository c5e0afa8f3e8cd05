"""What makes a stage smaller, each option with what is predicted of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from hvkf.buckets import Bucket
from hvkf.config import Config
from hvkf.config_file import check_config
from hvkf.estimate.parts import Shapes
from hvkf.estimate.stages import Encode, Render, StageEstimate, Train
from hvkf.training.sharding import Sharding

NUM_SHARDED_RANKS = 8


@dataclass(frozen=True)
class Option:
    """Settings that change a stage's memory.

    Attributes:
        name: What they do, in words.
        overrides: The settings, by dotted name.
        cost: What they cost.
    """

    name: str
    overrides: Mapping[str, Any]
    cost: str
    sharding: Sharding | None = None

    def words(self, config: Config) -> str:
        """What to add on the command line of a configuration."""
        if self.sharding is not None:
            return f"--sharding {self.sharding.name.lower()} --gpus {NUM_SHARDED_RANKS}"
        return " ".join(
            f"--{key}={str(value).lower()}"
            for key, value in self.overrides.items()
            if attrgetter(key)(config) != value
        )


@dataclass(frozen=True)
class Tried:
    """An option, what to write for it, and the stage as it is with it."""

    option: Option
    words: str
    estimate: StageEstimate


ALL_BLOCKS = {"hparams.gradient_checkpointing": True, "hparams.checkpoint_every_n_blocks": 1}
IN_MAIN_MEMORY = {**ALL_BLOCKS, "hparams.checkpoint_in_main_memory": True}
APPROXIMATE = "approximate; see docs/memory.md"
TRAIN_OPTIONS = (
    Option(
        "recompute every second block",
        {**ALL_BLOCKS, "hparams.checkpoint_every_n_blocks": 2},
        "exact; less arithmetic, more memory",
    ),
    Option("recompute all blocks", ALL_BLOCKS, "exact; a third more arithmetic"),
    Option("checkpoints in main memory", IN_MAIN_MEMORY, "exact; copies over the bus"),
    Option(
        "frozen weights in main memory",
        {"hparams.weights_in_main_memory": True},
        "exact; copies over the bus",
    ),
    Option(
        "frozen weights and checkpoints in main memory",
        {**IN_MAIN_MEMORY, "hparams.weights_in_main_memory": True},
        "exact; copies over the bus",
    ),
    Option("one sample at a time", {"data.batch_size": 1}, "another batch, unless accumulated"),
    Option("share all weights out", {}, f"exact; {NUM_SHARDED_RANKS} GPUs", Sharding.ALL),
    Option("weights in fp8", {"hparams.packed_weights": "fp8"}, APPROXIMATE),
    Option("weights in int8", {"hparams.packed_weights": "int8"}, APPROXIMATE),
    Option("weights in nf4", {"hparams.packed_weights": "nf4"}, APPROXIMATE),
    Option(
        "int8, checkpoints in main memory",
        {**IN_MAIN_MEMORY, "hparams.packed_weights": "int8"},
        APPROXIMATE,
    ),
    Option(
        "nf4, checkpoints in main memory",
        {**IN_MAIN_MEMORY, "hparams.packed_weights": "nf4"},
        APPROXIMATE,
    ),
)
ENCODE_OPTIONS = (
    Option("one sample at a time", {"encode.batch_size": 1}, "exact but for rounding"),
    Option("eight samples at a time", {"encode.batch_size": 8}, "exact but for rounding"),
    Option(
        "one caption at a time",
        {"encode.caption_batch_size": 1},
        "exact but for rounding",
    ),
    Option(
        "32 captions at a time",
        {"encode.caption_batch_size": 32},
        "exact but for rounding",
    ),
    Option("VAE tiles of 128 pixels", {"encode.vae_tile": 128}, APPROXIMATE),
)
AWAY = {"render.speed.offload_encoders": True}
RENDER_OPTIONS = (
    Option("encoders in main memory", AWAY, "exact; seconds for each video"),
    Option(
        "encoders and blocks in main memory",
        {**AWAY, "render.speed.group_offload": True},
        "exact; copies over the bus in each step",
    ),
    Option("VAE tiles of 128 pixels", {"render.speed.vae_tile": 128}, APPROXIMATE),
    Option("layers cast to fp8", {"render.speed.fp8_layerwise": True}, APPROXIMATE),
    Option("encoders away, fp8", {**AWAY, "render.speed.packed_weights": "fp8"}, APPROXIMATE),
    Option("encoders away, int8", {**AWAY, "render.speed.packed_weights": "int8"}, APPROXIMATE),
    Option("encoders away, nf4", {**AWAY, "render.speed.packed_weights": "nf4"}, APPROXIMATE),
)

OPTIONS = {"encode": ENCODE_OPTIONS, "train": TRAIN_OPTIONS, "render": RENDER_OPTIONS}


def with_option(config: Config, option: Option) -> Config:
    """Change a configuration.

    Raises:
        ConfigError: the option does not go with another setting.
    """
    settings = config.model_dump(mode="json")
    for key, value in option.overrides.items():
        section = settings
        *path, name = key.split(".")
        for part in path:
            section = section[part]
        section[name] = value
    if option.overrides.get("render.speed.packed_weights"):
        settings["render"]["speed"]["fp8_layerwise"] = False
    if option.overrides.get("render.speed.fp8_layerwise"):
        settings["render"]["speed"]["packed_weights"] = None
    return check_config(settings, f"the option {option.name!r}")


def try_options(
    config: Config,
    shapes: Shapes,
    stage: str,
    bucket: Bucket,
    num_ranks: int,
    sharding: Sharding,
    say: Callable[[str], None],
) -> Iterator[Tried]:
    """Count a stage under each option that changes the configuration.

    Args:
        config: The configuration.
        shapes: The sizes of its model.
        stage: encode, train or render.
        bucket: Which size.
        num_ranks: GPUs that train together.
        sharding: What they share out.
        say: Told what is counted next.
    """
    for option in OPTIONS[stage]:
        changed = with_option(config, option)
        if changed == config and option.sharding in (None, sharding):
            continue
        say(f"{stage} {bucket}: {option.name}")
        if stage == "encode":
            estimate = Encode(changed, shapes).estimate(bucket)
        elif stage == "render":
            estimate = Render(changed, shapes).estimate(bucket)
        elif option.sharding is not None:
            estimate = Train(changed, shapes, NUM_SHARDED_RANKS, option.sharding).estimate(bucket)
        elif sharding is Sharding.ALL and changed.hparams.holds_frozen_weights:
            continue  # see check_sharding
        else:
            estimate = Train(changed, shapes, num_ranks, sharding).estimate(bucket)
        yield Tried(option, option.words(config), estimate)
