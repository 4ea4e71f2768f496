"""Benchmarks: the whole system on this machine, measured from outside; ratios within one run."""
