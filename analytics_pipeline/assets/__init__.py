"""The assets: what each is (``spec``), how it is computed (``calculation``), its rows in the database (``rows``); and
the one protocol by which the derived ones are computed (``derive``). The raw one is written by ``flow``.
"""
