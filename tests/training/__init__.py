"""Tests of training: the run, its settings, what it saves."""
