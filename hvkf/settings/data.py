"""Settings of the way from videos to latents, and of loading these."""

from typing import Any, Literal

from pydantic import Field, field_validator

from hvkf.settings.section import NeededPath, PathText, Precision, Section


class IngestConfig(Section):
    """Where the videos are, and how they become clips."""

    dataset: str = Field(
        "default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the data set."
    )
    metadata: NeededPath = Field(
        "metadata.csv", description="Table of videos and captions: CSV, JSON, JSONL or Parquet."
    )
    base_dir: PathText | None = Field(
        None, description="Folder that video paths are relative to; left out, the table's folder."
    )
    follow_links: bool = Field(
        False,
        description="Take videos that links lead out of the base folder to, as in Hugging Face's "
        "caches; they are refused otherwise.",
    )
    video_column: str = Field("video_file", description="Column of the video's path.")
    caption_column: str = Field("caption", description="Column of the caption.")
    scene_split: Literal["none", "content", "adaptive"] = Field(
        "none", description="Cut videos into scenes with this PySceneDetect detector."
    )
    scene_threshold: float | None = Field(
        None, gt=0, description="Threshold of the detector; left out, the detector's own."
    )
    min_scene_frames: int = Field(
        15, ge=1, description="No cut follows another sooner; the last scene may be shorter."
    )
    target_fps: float | None = Field(
        None, gt=0, description="Resample to this frame rate; left out, frames stay as they are."
    )
    holdout_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of source videos kept from training, for evaluation."
    )
    min_holdout: int = Field(
        0, ge=0, description="Hold out at least this many source videos, however few there are."
    )
    find_near_duplicates: bool = Field(
        True,
        description="Keep videos that show the same on one side: all train, or all are held out. "
        "Decodes each video once more.",
    )
    interlaced: Literal["deinterlace", "refuse"] = Field(
        "deinterlace", description="What to do with interlaced videos: deinterlace is bwdif."
    )
    hdr: Literal["tonemap", "refuse"] = Field(
        "tonemap", description="What to do with HDR videos (PQ, HLG): map them to SDR, or refuse."
    )
    max_failed_fraction: float = Field(
        0.5, ge=0, le=1, description="Fail when more than this share of videos cannot be read."
    )


class CacheConfig(Section):
    """Which frames of which size become training samples."""

    bucket_reso: tuple[str, ...] = Field(
        (), description="Buckets as WxHxF: sizes divisible by 16, F = 4k+1 frames."
    )
    min_bucket_count: int = Field(1, ge=1, description="Buckets with fewer clips are dropped.")
    head_frame: int = Field(0, ge=0, description="Frames to skip at a clip's beginning.")
    frames: Literal["head", "center", "uniform", "windows"] = Field(
        "head",
        description="Which frames of a clip: its head, centre, evenly spread, or all windows.",
    )
    no_upscale: bool = Field(False, description="Do not enlarge clips smaller than the bucket.")
    segment_mb: int = Field(
        512,
        ge=1,
        description="Uncompressed size of a segment's pixels, in MiB, not exceeded by much.",
    )
    segments_per_part: int = Field(4, ge=1, description="Groups of clips that one worker takes.")
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="Fail when more than this share of items cannot be made."
    )

    @field_validator("bucket_reso", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            return value
        return [part for item in value for part in item.split(",") if part]


class EncodeConfig(Section):
    """How scenes become latents and text embeddings."""

    precision: Precision = Field("bf16", description="Precision of the encoders' weights.")
    stored: Precision = Field("bf16", description="Precision in which latents are stored.")
    batch_size: int = Field(
        1,
        ge=1,
        description="Samples of a segment that go through the VAE together; in another batch the "
        "last bits of latents are others.",
    )
    caption_batch_size: int = Field(
        1,
        ge=1,
        description="Captions of a segment that go through the text encoders together, those of "
        "like lengths; in another batch the last bits of embeddings are others.",
    )
    vae_tile: int | None = Field(
        None,
        ge=64,
        multiple_of=32,
        description="Approximate: side of the tiles that the VAE takes, in pixels; left out: 256.",
    )
    segments_per_part: int = Field(4, ge=1, description="Segments that one worker takes.")
    seed: int = Field(0, description="Seed of the posterior samples.")
    max_failed_fraction: float = Field(
        0.1, ge=0, le=1, description="Fail when more than this share of items cannot be encoded."
    )


class DataLoaderConfig(Section):
    """How batches are loaded."""

    drop_last: bool = Field(False, description="Drop the incomplete batch of each bucket.")
    num_workers: int = Field(0, ge=0, description="Processes that load batches ahead.")
    persistent_workers: bool = Field(True, description="Of the reference; has no effect.")
    pin_memory: bool = Field(True, description="Load into page-locked memory on GPU machines.")
    prefetch_factor: int = Field(2, ge=1, description="Batches that each process loads ahead.")
    timeout_s: float = Field(
        1800.0, gt=0, description="End the attempt when a process delivers no batch for so long."
    )


class StreamingConfig(Section):
    """The reference's settings of its streaming loader; order and batches are our own plan."""

    cache_limit: str | None = Field(
        None, description="Most bytes of shards to keep on this machine."
    )
    download_timeout: float = Field(12000, gt=0, description="Of the reference; has no effect.")
    num_canonical_nodes: int | None = Field(None, description="Of the reference; has no effect.")
    shuffle: bool = Field(True, description="Another order in each epoch.")
    batching_method: str = Field("per_stream", description="Of the reference; has no effect.")


class DataConfig(Section):
    """What to train on."""

    unset_only = frozenset({"repeat", "choose"})

    local: tuple[PathText, ...] | None = Field(
        None,
        description="Folders of latent shards made by the reference; left out, the workspace's.",
    )
    remote: tuple[PathText, ...] | None = Field(None, description="The same in object storage.")
    batch_size: int = Field(1, ge=1, description="Samples per process and step.")
    video_key: str = Field("video", description="Of the reference; has no effect.")
    caption_key: str = Field("caption", description="Of the reference; has no effect.")
    latents_key: str = Field("latents", description="Column of the video's latents.")
    prompt_embeds_key: str = Field("prompt_embeds", description="Column of Llama's embeddings.")
    latents_cond_key: str = Field("latents_cond", description="Column of the condition's latents.")
    prompt_attention_mask_key: str = Field(
        "prompt_attention_mask", description="Column of the mask."
    )
    pooled_prompt_embeds_key: str = Field(
        "pooled_prompt_embeds", description="Column of CLIP's pooled embedding."
    )
    dataloader_kwargs: DataLoaderConfig = DataLoaderConfig()
    streaming_kwargs: StreamingConfig = StreamingConfig()

    @field_validator("local", "remote", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
