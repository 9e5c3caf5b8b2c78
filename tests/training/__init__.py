"""Tests of training, data, checkpoints, prediction and pictures."""
