"""Fitting and measuring many times: the benchmark, the demo, the cost of a pass."""
