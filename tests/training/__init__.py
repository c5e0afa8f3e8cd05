"""Tests of `hvkf.training`."""
