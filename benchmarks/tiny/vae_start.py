"""A starting point from which a narrow HunyuanVideo VAE learns colours at once."""

import math
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoCausalConv3d,
    HunyuanVideoResnetBlockCausal3D,
)
from torch import nn

REFERENCE_LEVEL = 3.0
"""Of the two constant channels, one positive and one negative."""
POSTERIOR_STD = 0.03


def prepare(vae: Any, video_BCFHW: torch.Tensor) -> None:
    """Initialise in place for training without the group norms' loss of mean colour.

    A norm over all channels removes the mean and the contrast of the whole clip. Two constant
    channels of opposite sign, carried along the un-normalised shortcuts, dominate its statistics,
    so that little is removed, and tell later layers what was divided by. Residual branches
    start at zero (Fixup, Zhang et al. 2019), and the layers that remain give unit variance on
    `video_BCFHW` (LSUV, Mishkin and Matas 2015).
    """
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, HunyuanVideoResnetBlockCausal3D):
                module.conv2.conv.weight.zero_()
                nn.init.zeros_(cast(nn.Parameter, module.conv2.conv.bias))
            if isinstance(module, nn.GroupNorm):
                share = 2 * REFERENCE_LEVEL**2 / module.num_channels
                module.weight.fill_(math.sqrt(1 + share))
        for block in (vae.encoder.mid_block, vae.decoder.mid_block):
            block.attentions[0].to_out[0].weight.zero_()
            block.attentions[0].to_out[0].bias.zero_()
        for conv in stream_convs(vae):
            _start_stream(conv.conv)
        _fix_posterior(vae)
        _unit_variance(vae, video_BCFHW)


def stream_convs(vae: AutoencoderKLHunyuanVideo) -> list[HunyuanVideoCausalConv3d]:
    """The convolutions that write to the un-normalised stream, in no particular order."""
    endings = ("conv_in", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
    return [
        module
        for name, module in vae.named_modules()
        if name.endswith(endings) and isinstance(module, HunyuanVideoCausalConv3d)
    ]


def _start_stream(conv: nn.Conv3d) -> None:
    nn.init.orthogonal_(conv.weight)
    if conv.in_channels == conv.out_channels:
        nn.init.dirac_(conv.weight[..., -1:, :, :])
        conv.weight.add_(torch.randn_like(conv.weight), alpha=conv.weight[0].numel() ** -0.5 / 2)
    conv.weight[:2].zero_()
    assert conv.bias is not None, "stream convolutions have a bias"
    conv.bias.zero_()
    conv.bias[:2] = torch.tensor([REFERENCE_LEVEL, -REFERENCE_LEVEL])


def _fix_posterior(vae: Any) -> None:
    """Make the posterior's width a constant: the moments' second half is its log variance."""
    half = vae.config.latent_channels
    vae.quant_conv.weight[half:].zero_()
    vae.quant_conv.bias[half:].fill_(2 * math.log(POSTERIOR_STD))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight[:half])
        conv.bias[:half].zero_()


def _unit_variance(vae: Any, video_BCFHW: torch.Tensor) -> None:
    def rescale(conv: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        assert isinstance(conv, HunyuanVideoCausalConv3d)
        written = output[:, 2:] if conv in stream else output
        scale = 1 / written.std()
        conv.conv.weight.mul_(scale)
        bias = conv.conv.bias
        assert bias is not None
        return (output - bias.view(1, -1, 1, 1, 1)) * scale + bias.view(1, -1, 1, 1, 1)

    stream = stream_convs(vae)
    handles = [c.register_forward_hook(rescale) for c in [*stream, vae.encoder.conv_out]]
    moments = vae.quant_conv(vae.encoder(video_BCFHW))
    vae.decoder(vae.post_quant_conv(moments.chunk(2, dim=1)[0]))
    for handle in handles:
        handle.remove()
    vae.decoder.conv_out.conv.weight.mul_(0.3)
