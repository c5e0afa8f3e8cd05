"""How many bytes a sample, a checkpoint and a checkpoint's reading take in the workspace."""

from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

from hvkf.buckets import Bucket
from hvkf.estimate.passes import KEYFRAME_PLACES, latent_shape
from hvkf.model.conditioning import empty_latent_frames
from hvkf.model.text import MAX_SEQUENCE_LENGTH
from hvkf.model.widening import LATENT_CHANNELS

NUM_COLOURS = 3
BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StoredSample:
    """Bytes of one sample, before any compression.

    Attributes:
        scene: Its frames as uint8, at most: shards compress them.
        latents: Of the video.
        condition: Latents of the keyframes' video that cannot be worked out again.
        text: Embeddings of a caption of the full length.
    """

    scene: int
    latents: int
    condition: int
    text: int

    @property
    def encoded(self) -> int:
        """What encoding writes, and training reads."""
        return self.latents + self.condition + self.text


def stored_sample(
    vae: AutoencoderKLHunyuanVideo, bucket: Bucket, stored: str, text_size: int, pooled_size: int
) -> StoredSample:
    """Count the bytes of a sample.

    Args:
        vae: The VAE, whose tiles say which latents of the condition are those of an empty video.
        bucket: Its size.
        stored: As encode.stored.
        text_size: Numbers in a token's embedding.
        pooled_size: Numbers in a caption's pooled embedding.
    """
    num_frames, height, width = latent_shape(vae, bucket)
    size = BYTES_OF[stored]
    frame = LATENT_CHANNELS * height * width * size
    kept = num_frames - len(empty_latent_frames(vae, KEYFRAME_PLACES, bucket.num_frames))
    text = MAX_SEQUENCE_LENGTH * (text_size * size + 1) + pooled_size * size
    return StoredSample(
        scene=bucket.num_frames * bucket.height * bucket.width * NUM_COLOURS,
        latents=num_frames * frame,
        condition=kept * frame,
        text=text,
    )
