"""Tests against a real cluster, run by `make e2e`."""
