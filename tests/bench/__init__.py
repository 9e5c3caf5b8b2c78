"""Tests of the benchmarks and their tables."""
