"""Every exception and warning a user may want to catch.

Each message says what was found, where, and what to do about it. All errors derive from
:class:`DisparseError`, all warnings from :class:`DisparseWarning`. None of them leaves the user's model
changed.
"""

from __future__ import annotations

import importlib.util


class DisparseError(Exception):
    """Base class of every error raised on purpose by this package."""


class DisparseWarning(UserWarning):
    """Base class of every warning of this package: the result is valid, but something needs attention."""


class OptionError(DisparseError, ValueError):
    """An option has a value of the wrong kind, is out of range, or contradicts another option."""


class MissingExtraError(DisparseError, ImportError):
    """A library that only some users need is not installed."""


class TaskError(DisparseError):
    """A task is missing, its selector misses, it reaches nothing, or its loss is not usable."""


class BatchError(DisparseError):
    """The data gives no batch, or batches that the model refuses."""


class DataError(DisparseError):
    """A data set's files are missing, damaged, or not of the layout that they should be."""


class UnsupportedModelError(DisparseError):
    """The model is of a kind that cannot be pruned as it is (``DataParallel``, compiled, quantized)."""


class ExtensionError(DisparseError):
    """An entry point of another package cannot be loaded, or does not do what it is for."""


class CaptureError(DisparseError):
    """``torch.export`` could not turn the model into a graph."""


class GradientError(DisparseError):
    """A task's gradient is NaN or infinite."""


class BudgetError(OptionError):
    """The budget is malformed, or no set of widths that the options allow meets it.

    A budget is an option, so this is an :class:`OptionError` too.
    """


class PlanError(DisparseError):
    """A plan does not fit: another model, another schema version, indices out of range, unknown groups."""


class PatternError(DisparseError):
    """A name pattern (protected layers, say) matches nothing."""


class VerificationError(DisparseError):
    """The pruned model differs from the masked twin. Nothing is handed back."""


class ExportError(DisparseError):
    """The ONNX file could not be written, is not valid, or does not agree with PyTorch."""


class LoadError(DisparseError):
    """A saved folder is incomplete, or does not fit the model that the factory builds."""


class DifferentModelWarning(DisparseWarning):
    """A loaded model does not compute what the saved one computed: the factory builds something else."""


class SaveError(DisparseError):
    """A file or folder cannot be written. What was there is unchanged."""


def require(extra: str, *modules: str) -> None:
    """Raises :class:`MissingExtraError` unless ``modules``, which ``extra`` installs, can be found."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} cannot be found. Run: pip install 'disparse-structured[{extra}]'"
        )
