"""What the pipeline's speed is, beside what it replaces and beside what the machine can do at all.

``python -m benchmarks`` runs everything; see ``__main__``. Nothing here is imported by the package.
"""
