"""Tests of the torch side; they run on the tiny checkpoint that the reference was run on."""
