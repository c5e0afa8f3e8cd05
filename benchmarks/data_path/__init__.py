"""The data path against its limits."""
