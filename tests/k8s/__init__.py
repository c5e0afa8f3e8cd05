"""Tests of the manifests of an installation."""
