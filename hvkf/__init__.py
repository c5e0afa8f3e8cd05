"""hvkf: keyframe-control LoRAs for HunyuanVideo, trained and rendered as a batch workflow."""
