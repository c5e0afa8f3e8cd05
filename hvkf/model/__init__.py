"""The torch side: the checkpoint's parts, the LoRA, the training loss and the sampler."""
