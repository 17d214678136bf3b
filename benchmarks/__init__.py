"""Benchmarks of avfmae: ``avfmae bench kernels | step | loader | scaling | plot``.

Rows go to ``results/*.csv``, pictures come from them."""
