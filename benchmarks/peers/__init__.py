"""What avfmae is measured against: the published models, executed as published. Nothing but the benchmark imports this.

Weights carry the names that our models give them, so that :func:`avfmae.load_released` reads published files into both.
"""
