"""A GPU's first run: ``python benchmarks/gpu_first.py``. Parts in the order of what is most worth knowing, a journal, and a
page."""
