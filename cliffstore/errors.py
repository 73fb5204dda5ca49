"""Errors, grouped by what the caller would do about them.

`UserError` and its children mean "the input is wrong": the command line prints the one-line message and exits
with code 2. Every other `CliffstoreError` means that the work itself failed: exit code 1. Each class carries a
stable `code` for machines, and subclasses the builtin that a Python caller would expect to catch.
"""

from __future__ import annotations


class CliffstoreError(Exception):
    """Base of every error that cliffstore raises on purpose. The message is one line."""

    code = "cliffstore"
    exit_code = 1


class UserError(CliffstoreError):
    """The user's input is wrong. The message says what, where, and what to do."""

    code = "usage"
    exit_code = 2


class ConfigError(UserError, ValueError):
    """An option or a configuration file has a value that cannot be used."""

    code = "config"


class CorpusError(UserError, ValueError):
    """The corpus cannot be read, or is not what a corpus must be."""

    code = "corpus"


class ModelError(UserError, ValueError):
    """The model, its tokenizer, a layer or a site is not there."""

    code = "model"


class StoreError(UserError, ValueError):
    """The store is missing, of another kind, or does not fit what was asked."""

    code = "store"


class ProbeError(UserError, ValueError):
    """A probe is unknown, or cannot be fitted from what the store holds."""

    code = "probe"


class QueryError(UserError, ValueError):
    """A SQL statement is malformed or asks for something that is not there."""

    code = "query"


class QueryStoppedError(CliffstoreError, RuntimeError):
    """A SQL statement was stopped: by its time limit, by its memory limit, or by hand."""

    code = "stopped"


class SelectionError(UserError, ValueError):
    """A selection or an export cannot be made as asked."""

    code = "selection"


class DamagedStoreError(CliffstoreError, RuntimeError):
    """What the store holds contradicts its receipts or digests. `problem` is what is wrong, without where."""

    code = "damaged"
    problem = "is damaged"


class StorageError(CliffstoreError, OSError):
    """Storage does not answer, or has no room left. What was committed stays; the same command goes on from there."""

    code = "storage"


class EndpointError(CliffstoreError, RuntimeError):
    """A model that is asked over HTTP does not answer. Answers so far are kept; the same command goes on from there."""

    code = "endpoint"


class EndpointRefusedError(UserError, ValueError):
    """A model that is asked over HTTP refuses a request for good, with HTTP's `status`."""

    code = "endpoint_refused"
    status = 0


class ExtractionError(CliffstoreError, RuntimeError):
    """A unit could not be computed or written. `final` where the data is the cause, so that trying again is no use."""

    code = "extraction"
    final = False


class GenerationError(ExtractionError):
    """Examples could not be generated. What was finished is kept; the same command goes on from there."""

    code = "generation"


class InterruptedRunError(CliffstoreError):
    """The user stopped a run. What was committed stays; the same command goes on from there."""

    code = "interrupted"
    exit_code = 130
