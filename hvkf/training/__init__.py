"""Training the keyframe LoRA: what each step trains on, the step, and its checkpoints."""
