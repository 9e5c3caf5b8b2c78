"""Tests of masks, views and plots."""
