"""What the extra figures of an evaluation need, and the distance of sets of videos. No torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hvkf.errors import BadInput
from hvkf.settings.evaluation import EvaluateConfig

NEEDED = {
    "lpips": ("checkpoints/alexnet-owt-7be5be79.pth", "torchvision's AlexNet weights"),
    "clip": ("clip/config.json", "a CLIP checkpoint, such as openai/clip-vit-base-patch16"),
    "fvd": ("i3d_torchscript.pt", "the I3D network of Kinetics-400 as TorchScript"),
}


def check_extras(evaluate: EvaluateConfig) -> None:
    """See that the weights of the extra figures are where they should be.

    Raises:
        BadInput: all that are missing, and where to put them.
    """
    if not evaluate.extras:
        return
    if evaluate.extras_weights is None:
        raise BadInput(
            f"evaluate.extras ({', '.join(evaluate.extras)}) needs weights: set "
            "evaluate.extras_weights to a folder with them (docs/evaluation.md lists the files)."
        )
    folder = Path(evaluate.extras_weights)
    missing = [
        f"{name} needs {what} at {folder / file}"
        for name in evaluate.extras
        for file, what in [NEEDED[name]]
        if not (folder / file).exists()
    ]
    if missing:
        raise BadInput(
            f"{'; '.join(missing)}: put them there, or take them out of evaluate.extras."
        )


def frechet_distance(
    made: Sequence[Sequence[float]], true: Sequence[Sequence[float]]
) -> float | None:
    """Compare two sets of feature vectors as normal distributions: FVD (Unterthiner et al. 2018).

    Returns:
        The squared Frechet distance; None with fewer than two vectors. Sets that are small against
        the vectors' length (400) give values that only compare with those of equal sets.
    """
    from scipy.linalg import sqrtm

    if len(made) < 2 or len(true) < 2:
        return None
    first, second = np.asarray(made, dtype=np.float64), np.asarray(true, dtype=np.float64)
    covariances = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1])
    apart = first.mean(axis=0) - second.mean(axis=0)
    trace = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real
    return float(apart @ apart + trace)
