"""How many bytes an optimizer keeps for each trained weight."""

from hvkf.settings.optimizers import known_name

BYTE = 1
# Moments as wide as the weight; optimi adds a third, Kahan's compensation, to weights of 16 bits.
MOMENTS = {"adam": 2, "adamw": 2, "optimi-adamw": 2, "optimi-stableadamw": 2, "came": 1}
COMPENSATED = ("optimi-adamw", "optimi-stableadamw")
# bitsandbytes keeps a byte for each moment; CAME's second moments are rows and columns.
EIGHT_BIT = {"bnb-adamw8bit": 2, "bnb-lion8bit": 1}


def optimizer_bytes(name: str, num_weights: int, weight_bytes: int) -> int:
    """Count an optimizer's state.

    Args:
        name: As hparams.optimizer_type.
        num_weights: How many it updates.
        weight_bytes: Of each.

    Raises:
        BadInput: an unknown name.
    """
    known = known_name(name)
    if known in EIGHT_BIT:
        return EIGHT_BIT[known] * BYTE * num_weights
    moments = MOMENTS[known]
    if known in COMPENSATED and weight_bytes == 2:
        moments += 1
    return moments * weight_bytes * num_weights
