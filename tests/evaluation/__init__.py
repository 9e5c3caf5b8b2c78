"""Tests of prediction and evaluation."""
