"""Tests of the settings of one subject each."""
