"""Networks of transformers: several heads on one backbone, and pruned networks as transformers' own folders.

:func:`save_pretrained` writes a folder with the configuration that describes the pruned widths. Where an
ordinary configuration can, transformers alone loads the folder. Where none can, ``config.json`` records the
widths, and the folder is loaded by :func:`from_pretrained` or, once this module is imported, by transformers'
Auto classes. The folder holds no code, and none is executed.
"""

# ruff: noqa: E402  (a missing transformers is reported before it is imported)

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from disparse_structured.errors import LoadError, UnsupportedModelError, require
from disparse_structured.graph.copies import borrowing
from disparse_structured.pipeline import PruningResult

require("transformers", "transformers")

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from disparse_structured.adapters.transformers_config import built, fitted
from disparse_structured.adapters.transformers_heads import MultiTask, PooledHead, TokenHead
from disparse_structured.adapters.transformers_widths import Widths, record, restore

__all__ = [
    "MultiTask",
    "PooledHead",
    "PrunedConfig",
    "PrunedModel",
    "TokenHead",
    "fitted_config",
    "from_pretrained",
    "save_pretrained",
]

_RECORD = "disparse"
"""The ``model_type`` of a configuration that records widths."""


class PrunedConfig(PreTrainedConfig):
    """A configuration that records widths which no configuration of the model's own class describes.

    Args:
        architecture: the class of the model, by its name in transformers.
        dense: the configuration of the dense model, as plain data.
        widths: the tensors and numbers that differ in the pruned one.
    """

    model_type = _RECORD

    def __init__(
        self,
        architecture: str = "",
        dense: dict[str, Any] | None = None,
        widths: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.architecture = architecture
        self.dense = dense or {}
        self.widths = widths or {}


class PrunedModel(PreTrainedModel):
    """What transformers' Auto classes find for a :class:`PrunedConfig`; loads the class that was saved."""

    config_class = PrunedConfig

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers' own has many named options
        cls, folder: Any, *arguments: Any, config: Any = None, **options: Any
    ) -> Any:
        """See :func:`from_pretrained`."""
        config = config if isinstance(config, PrunedConfig) else PrunedConfig.from_pretrained(folder)
        return _loaded(folder, config, _class(config.architecture, None, folder), *arguments, **options)


def save_pretrained(
    result: PruningResult | PreTrainedModel, folder: str | Path, **options: Any
) -> PreTrainedConfig:
    """Write a pruned model of transformers, such that it loads with the pruned widths.

    The model and its config are left as they are.

    Args:
        result: what ``prune`` returned, or the pruned model itself.
        folder: is created if needed.
        options: those of transformers' ``save_pretrained``, such as ``max_shard_size``.

    Returns:
        The configuration that was written: of the model's own class, or a :class:`PrunedConfig`.

    Raises:
        UnsupportedModelError: the model is not a class of transformers, or it holds something that a folder
            of transformers does not.
    """
    model: Any = result.model if isinstance(result, PruningResult) else result
    config = fitted_config(result)
    document = {"dtype": str(model.dtype).removeprefix("torch."), "architectures": [type(model).__name__]}
    with borrowing(model) as borrowed:  # saving writes to the config
        replica: Any = borrowed
        replica.config = copy.deepcopy(model.config if isinstance(config, PrunedConfig) else config)
        replica.save_pretrained(folder, **options)
    for name, value in document.items():
        setattr(config, name, value)
    config.save_pretrained(folder)
    return config


def fitted_config(result: PruningResult | PreTrainedModel) -> PreTrainedConfig:
    """The configuration that describes the widths of a pruned model, which keeps its own.

    After ``model.config = fitted_config(result)``, transformers' own ``save_pretrained`` writes it, and so
    does a ``Trainer``, provided that it is of the model's own class.

    Args:
        result: what ``prune`` returned, or the pruned model itself. Only a result has the inputs on which an
            ordinary configuration is checked. Without them, fewer models get one.

    Raises:
        UnsupportedModelError: as in :func:`save_pretrained`.
    """
    model = result.model if isinstance(result, PruningResult) else result
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a model of transformers, so no configuration describes it. Use "
            "result.save(folder) and disparse_structured.load."
        )
    config = fitted(model, result.example_inputs if isinstance(result, PruningResult) else None)
    if config is not None:
        return config
    kind = type(model)
    widths = record(Widths.of(built(kind, model.config)), Widths.of(model), kind.__name__)
    return PrunedConfig(architecture=kind.__name__, dense=model.config.to_diff_dict(), widths=widths)


def from_pretrained(
    folder: str | Path, kind: type[PreTrainedModel] | None = None, **options: Any
) -> PreTrainedModel:
    """Load the model of a folder that :func:`save_pretrained` wrote, in eval mode.

    Args:
        kind: the class of the model, if transformers does not have it under its name.
        options: those of transformers' ``from_pretrained``, such as ``dtype`` and ``device_map``.

    Raises:
        LoadError: the folder is not one of a model of transformers, or its weights have other widths than its
            configuration.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{str(folder)!r} has no config.json of a model of transformers ({error}). Give a folder that "
            "save_pretrained of this module wrote; ds.load reads one that result.save wrote."
        ) from None
    names = [config.architecture] if isinstance(config, PrunedConfig) else config.architectures or [""]
    return _loaded(folder, config, _class(names[0], kind, folder), **options)


def _class(name: str, kind: type[PreTrainedModel] | None, folder: Any) -> type[PreTrainedModel]:
    found = kind or getattr(transformers, name, None)
    if found is None:
        raise LoadError(
            f"config.json in {str(folder)!r} is of a {name or 'model without a class'}, which transformers "
            f"{transformers.__version__} does not have. Pass its class as kind=."
        )
    return found


def _loaded(
    folder: Any, config: PreTrainedConfig, kind: type[PreTrainedModel], *arguments: Any, **options: Any
) -> PreTrainedModel:
    recorded = isinstance(config, PrunedConfig)
    own: Any = kind.config_class
    given = own.from_dict(dict(config.dense)) if recorded else config
    loading = _restoring(kind, config.widths) if recorded else kind
    try:
        model = loading.from_pretrained(folder, *arguments, config=given, **options)
    except RuntimeError as error:
        raise LoadError(
            f"the weights in {str(folder)!r} do not have the widths that config.json says: {error}. Was the "
            "pruned model saved with its own save_pretrained? Save it with that of this module."
        ) from error
    for each in [model[0] if isinstance(model, tuple) else model]:
        each.__class__ = kind
    return model


def _restoring(kind: type[PreTrainedModel], widths: dict[str, Any]) -> type[PreTrainedModel]:
    """``kind`` with a constructor that gives what it builds the recorded widths before weights are loaded."""

    def construct(self: PreTrainedModel, *arguments: Any, **named: Any) -> None:
        kind.__init__(self, *arguments, **named)
        restore(self, widths)

    return type(kind.__name__, (kind,), {"__init__": construct, "__module__": kind.__module__})


def _register() -> None:
    AutoConfig.register(_RECORD, PrunedConfig, exist_ok=True)
    found: list[Any] = [each for each in vars(modeling_auto).values() if isinstance(each, type)]
    for auto in found:
        if getattr(auto, "_model_mapping", None) is not None:
            auto.register(PrunedConfig, PrunedModel, exist_ok=True)


_register()
