"""What all tests share."""

import os

from hypothesis import settings

# Shared machines pause: a property is right or wrong, not fast or slow.
settings.register_profile("hvkf", deadline=None)
settings.load_profile("hvkf")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
