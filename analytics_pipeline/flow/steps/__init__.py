"""One step a derived asset: read its inputs, compute, gate; then write and say what depends on what changed.

A step knows its tables and its stage. Locks, snapshots, marks, quarantine and commits are ``flow.derive``'s.
"""
