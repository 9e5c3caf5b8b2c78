"""Tests of loading other implementations' weights."""
