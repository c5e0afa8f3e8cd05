"""Tests of what the images hold."""
