"""Tests of deployed and exported networks."""
