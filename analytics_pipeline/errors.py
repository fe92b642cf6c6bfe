"""Errors that a person may see: each says where, what value, and the remedy. No logic here."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error this project raises on purpose."""


class SettingsError(PipelineError):
    """A wrong setting: names the variable, the value it got, and what it takes."""


class OffsetConflictError(PipelineError):
    """Another drain moved the offsets of a partition first; this one must roll back and start over."""


class DomainCollisionError(PipelineError):
    """Two domains claim one name or one topic."""


class DomainPackageError(PipelineError):
    """Another installed package says that it brings a domain, and does not."""


class StaleCodeError(PipelineError):
    """A warm worker runs older code than the code location; it must be restarted."""


class EmbeddedServerError(PipelineError):
    """An embedded server did not start or stop as it should; carries the end of its log."""


class BelowRetentionError(PipelineError):
    """An hour that retention has taken; it is not computed from what is left of it."""


class RunEndedError(PipelineError):
    """A run that was given up, canceled or failed tries to write: another one does its work."""
