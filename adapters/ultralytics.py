"""Networks of Ultralytics: ``prune(YOLO("yolo11n-seg.pt"), images, macs=0.5).yolo`` is a smaller ``YOLO``.

Ultralytics is under the AGPL-3.0. Only this module imports it, and nothing else of the package needs it.
"""

# ruff: noqa: E402  (a missing library is reported before it is imported)

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disparse_structured.data.arguments import arguments
from disparse_structured.data.batches import ToInputs
from disparse_structured.data.calibration import Calibration
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import (
    DataError,
    LoadError,
    OptionError,
    UnsupportedModelError,
    require,
)
from disparse_structured.graph.copies import copied
from disparse_structured.graph.outputs import output_of
from disparse_structured.pipeline import prune as prune_module
from disparse_structured.pipeline.inputs import SAMPLES, Data
from disparse_structured.pipeline.result import PruningResult
from disparse_structured.structure import Structure, analyse
from disparse_structured.surgery import saving
from disparse_structured.tasks import Task, named_among

require("ultralytics", "ultralytics")

import ultralytics
from ultralytics.engine.model import Model
from ultralytics.nn import modules
from ultralytics.nn import tasks as networks

__all__ = ["RTDETR", "YOLO", "UltralyticsResult", "images", "load", "prune", "raw_outputs"]

_RAW = {
    "boxes": "boxes",
    "scores": "scores",
    "mask_coefficient": "masks",
    "proto": "prototypes",
    "kpts": "keypoints",
    "angle": "angles",
}
"""What the heads that detect call their raw outputs, and the tasks' names."""

_DECODER = ("boxes", "scores", "encoder_boxes", "encoder_scores")
"""The raw outputs of RT-DETR's decoder, by position. The encoder's scores select the queries."""

_DENSE_BACKBONE = "dense_backbone"
"""Where the configuration of a pruned network keeps the dense backbone, see :func:`_marked`."""

_NOT_BUILT = "a pruned network, to be trained with the YOLO of disparse_structured.adapters.ultralytics"

_ENTRY = "ultralytics"
"""The entry of ``report.json`` that :func:`load` reads."""


# Pruning.


@dataclass(frozen=True, repr=False)
class UltralyticsResult(PruningResult):
    """A :class:`~disparse_structured.pipeline.PruningResult` with the library's object.

    ``model``, and what :meth:`save` writes, is the network as it was pruned. ``yolo`` has its own copy, which
    the library may fuse and train; ``yolo.save("small.pt")`` writes that one.

    Args:
        yolo: the smaller network as an object of the library, whose ``train`` keeps the pruned widths.
    """

    yolo: Model

    def save(self, folder: str | Path, *, training: Mapping[str, Any] | None = None) -> None:
        """Writes what :meth:`PruningResult.save` does, and how to build the dense network.

        :func:`load` reads the folder.
        """
        super().save(folder, training=training)
        saving.extend_report(folder, {_ENTRY: _description(self.model)})


def prune(
    yolo: Model | nn.Module,
    data: Tensor | Iterable[Any] | Calibration,
    tasks: Sequence[Task | str] | None = None,
    *,
    structure: Structure | None = None,
    to_inputs: ToInputs | None = None,
    **options: Any,
) -> UltralyticsResult:
    """Prunes a network of Ultralytics, as :func:`disparse_structured.prune` does.

    The tasks are the head's raw outputs, before boxes are decoded and selected (:func:`raw_outputs`). The
    feature maps that the head also returns may shrink.

    >>> import torch
    >>> from ultralytics import YOLO
    >>> from disparse_structured.adapters.ultralytics import prune
    >>> result = prune(YOLO("yolov8n-cls.yaml"), torch.rand(4, 3, 32, 32), macs=0.5)
    >>> result.yolo.task, result.report.costs["macs"].ratio <= 0.5
    ('classify', True)

    Args:
        yolo: a ``YOLO`` or ``RTDETR``, or its ``model``; it is left as it is.
        data: images ``[N, C, H, W]`` in 0 to 1, such as :func:`images` reads, or batches, also those of the
            library's own loaders.
        tasks: some of the raw outputs, by name, or other tasks. What no task uses is removed.
        structure: what :func:`~disparse_structured.analyse` read from ``yolo.model``; it has the tasks.
        to_inputs: from a batch to the arguments of ``forward``.
        options: the other options of :func:`disparse_structured.prune`, such as ``macs``, ``method``,
            ``refit``, ``samples``.

    Raises:
        UnsupportedModelError: not a network of Ultralytics, an exported file, an open-vocabulary network, or
            one whose layers were fused.
        OptionError: ``structure`` is of the exported graph, which the library cannot hold.
        DisparseError: as :func:`disparse_structured.prune` does.
    """
    model = _network(yolo)
    read = functools.partial(_inputs, model) if to_inputs is None else to_inputs
    if structure is None:
        data = list(data) if isinstance(data, Iterator) else data
        inputs = Data.of(model, data, read, samples=2, fits=False).example_inputs
        chosen = named_among(tasks, lambda: raw_outputs(model, inputs))
        structure = analyse(model, inputs, chosen, outputs="tasks")
        tasks = None
    elif structure.form == "graph":
        raise OptionError(
            "structure is of the exported graph (form='graph'), which is not a network of Ultralytics. Use "
            "form='module', or call disparse_structured.prune(yolo.model, ...)."
        )
    result = prune_module(model, data, tasks, structure=structure, to_inputs=read, **options)
    small: Any = result.model
    small.yaml, small.pt_path = _marked(small.yaml), _file_name(model)
    return UltralyticsResult(**vars(result), yolo=_library_object(small))


def raw_outputs(model: nn.Module, example_inputs: tuple[Any, ...] | Tensor) -> tuple[Task, ...]:
    """The raw outputs of a network's head in eval mode, as label-free tasks.

    They are ``boxes``, ``scores``, and ``masks`` (coefficients) with ``prototypes``, ``keypoints`` or
    ``angles`` for heads that detect. YOLOv10 and YOLO26 train two heads, of which inference uses one. The
    outputs of the other are tasks too: ``one2one_boxes`` or ``one2many_boxes``, and so on. RT-DETR has
    ``boxes`` and ``scores``, also as its encoder proposes them. A classifier has ``scores`` (logits).

    Args:
        model: a network of Ultralytics, such as ``yolo.model``.
        example_inputs: images ``[B, C, H, W]``.

    Raises:
        UnsupportedModelError: the head is not known.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    head: Any = _head(model)
    if isinstance(head, modules.RTDETRDecoder):
        return tuple(Task(name, (1, position)) for position, name in enumerate(_DECODER))
    if isinstance(head, modules.Classify):
        return (Task("scores", 1),)
    output = output_of(model, inputs)
    if isinstance(output, Tensor):
        return (Task("depth" if type(head).__name__ == "Depth" else "scores", ()),)
    if not isinstance(head, modules.Detect):
        raise UnsupportedModelError(
            f"the outputs of the head {type(head).__name__} are not known. Pass tasks=[Task(name, output)]."
        )
    raw = output[1]
    if "one2one" not in raw:
        return tuple(Task(name, (1, key)) for key, name in _RAW.items() if key in raw)
    used, other = ("one2one", "one2many") if head.end2end else ("one2many", "one2one")
    found = [Task(name, (1, used, key)) for key, name in _RAW.items() if key in raw[used]]
    for key, name in _RAW.items():
        if key in raw[other] and key != "proto":  # both heads share the prototypes
            found.append(Task(f"{other}_{name}", (1, other, key)))
    return tuple(found)


def images(yolo: Model, source: Any, *, imgsz: int = 640, count: int = SAMPLES) -> Tensor:
    """Images as the network meets them: read, resized and scaled by the library's own predictor.

    Args:
        yolo: a ``YOLO`` or ``RTDETR``.
        source: whatever ``yolo.predict`` takes: a folder, a pattern, a video, a list of files or of arrays.
        imgsz: side of the images in pixels, a multiple of the network's stride.
        count: read at most this many.

    Returns:
        ``[N, C, imgsz, imgsz]`` in 0 to 1, on the network's device.

    Raises:
        DataError: there is no image.
    """
    custom = {"imgsz": imgsz, "rect": False, "batch": 1, "save": False, "verbose": False, "mode": "predict"}
    predictor = yolo.task_map[yolo.task]["predictor"](overrides={**yolo.overrides, **custom})
    # A copy: older versions of the library fuse the layers of the network they get.
    predictor.setup_model(copied(yolo.model), verbose=False)
    predictor.setup_source(source)
    found: list[Tensor] = []
    for _, arrays, _ in predictor.dataset:
        found.extend(predictor.preprocess(arrays).float().split(1))
        if len(found) >= count:
            break
    if not found:
        raise DataError(f"{source!r} holds no image. Pass a folder, a list of files, or arrays.")
    return torch.cat(found[:count])


def load(folder: str | Path, dense: Model | nn.Module | None = None) -> Model:
    """Loads the library's object from a folder that :meth:`UltralyticsResult.save` wrote.

    Files that the library itself wrote (``best.pt``, ``yolo.save("small.pt")``) are loaded by :class:`YOLO`.

    Args:
        folder: the folder.
        dense: the network that was pruned, if its configuration does not build it: it was changed by hand, or
            pruned before.

    Raises:
        LoadError: a file is missing, does not fit, or was not written by :meth:`UltralyticsResult.save`.
        PlanError: the configuration, or ``dense``, is another network than the one that was pruned.
    """
    described = saving.extend_report(folder, {}).get(_ENTRY)
    if not isinstance(described, dict):
        raise LoadError(
            f"{str(folder)!r} does not say which network of Ultralytics it holds. Give a folder that the "
            "result of disparse_structured.adapters.ultralytics.prune saved, or use disparse_structured.load."
        )

    def build() -> nn.Module:
        if dense is not None:
            network: nn.Module = _network(dense)
            return copied(network)
        model: Any = _dense(getattr(networks, described["network"]), described["yaml"])
        if described["end2end"]:  # otherwise the library's default
            model.end2end = True
        built: nn.Module = model
        return built

    model: Any = saving.load(folder, build)
    model.yaml, model.pt_path = _marked(described["yaml"]), described["file"]
    model.names = {int(number): name for number, name in described["names"].items()}
    model.args, model.task = described["args"], described["args"]["task"]
    return _library_object(model)


# The library's objects.


def _keeps_widths(trainer: type) -> type:
    """``trainer`` with a ``get_model`` that takes a pruned network as it is, fitted to the data set."""

    class Trainer(trainer):  # type: ignore[misc]  # its base is known when it runs
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            if _is_pruned(weights):
                dense = super().get_model(cfg=_unmarked(weights.yaml), weights=None, verbose=False)
                return _fitted(weights, dense)
            if isinstance(cfg, Mapping) and _DENSE_BACKBONE in cfg:
                raise OptionError(
                    "pretrained= asks for weights of another network, or none, but a pruned network cannot "
                    "be built without its own. Leave pretrained out."
                )
            built: nn.Module = super().get_model(cfg=cfg, weights=weights, verbose=verbose)
            return built

    Trainer.__name__ = trainer.__name__
    return Trainer


class _KeepsWidths:
    """An object of the library that trains a pruned network as it is, instead of building the dense one."""

    task: Any
    task_map: Any

    def train(self, trainer: Any = None, **options: Any) -> Any:
        """As the library's ``train``, with any of its options."""
        trainer = _keeps_widths(trainer or self.task_map[self.task]["trainer"])
        return super().train(trainer=trainer, **options)  # type: ignore[misc]  # of the class mixed in


class RTDETR(_KeepsWidths, ultralytics.RTDETR):  # type: ignore[misc]  # mypy skips Ultralytics
    """Ultralytics' ``RTDETR`` whose ``train`` keeps the widths of a pruned network."""


class YOLO(_KeepsWidths, ultralytics.YOLO):  # type: ignore[misc]  # mypy skips Ultralytics
    """Ultralytics' ``YOLO`` whose ``train`` keeps the widths of a pruned network.

    Use it to train from files of pruned networks: ``YOLO("best.pt").train(...)``, or
    ``YOLO("last.pt").train(resume=True)``. Everything else also works with the library's own ``YOLO``.
    """

    def __init__(self, model: Any, task: str | None = None, verbose: bool = False) -> None:
        super().__init__(model, task, verbose)
        if isinstance(self, ultralytics.RTDETR):  # the library changes the class of such an object
            self.__class__ = RTDETR


def _library_object(model: Any) -> Model:
    """The library's object with a copy of ``model``, as if it had been loaded from ``model.pt_path``."""
    kind = RTDETR if isinstance(_head(model), modules.RTDETRDecoder) else YOLO
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.pt"
        torch.save({"model": model, "train_args": dict(getattr(model, "args", {}))}, path)
        yolo: Any = kind(str(path))
    yolo.model.pt_path = yolo.model_name = yolo.overrides["model"] = model.pt_path
    yolo.ckpt, yolo.ckpt_path = {"model": yolo.model}, None  # there is no file to resume from
    found: Model = yolo
    return found


def _file_name(model: Any) -> str:
    """The file that a pruned network stands for, from whose name the library derives those of exports."""
    if getattr(model, "pt_path", None):
        path = Path(model.pt_path)
        return str(path.with_name(f"{path.stem}-pruned.pt"))
    return f"{Path(model.yaml['yaml_file']).stem}-pruned.pt"


def _description(model: Any) -> dict[str, Any]:
    return {
        "network": type(model).__name__,
        "yaml": _unmarked(model.yaml),
        "names": model.names,
        "end2end": bool(getattr(model, "end2end", False)),
        "args": {key: model.args[key] for key in ("imgsz", "data", "task", "single_cls")},
        "file": Path(model.pt_path).name,
    }


# Networks.


def _network(yolo: Model | nn.Module) -> Any:
    model: Any = yolo.model if isinstance(yolo, Model) else yolo
    if not isinstance(model, networks.BaseModel):
        raise UnsupportedModelError(
            "expected a YOLO or RTDETR of Ultralytics with a network in PyTorch, or that network, but got "
            f"{model if isinstance(model, str) else type(model).__name__!r}. Exported files cannot be "
            "pruned; load the .pt file."
        )
    if isinstance(model, networks.WorldModel | networks.YOLOEModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} compares images with texts, which other networks embed. Prune networks "
            "with a fixed set of classes."
        )
    if _is_fused(model):
        raise UnsupportedModelError(
            "the layers of this network are fused, for inference only. Load its file again, and fuse after "
            "pruning."
        )
    return model


def _is_fused(model: nn.Module) -> bool:
    """Whether no batch norm is left. Older versions of the library take every small network for fused."""
    return not any(hasattr(module, "bn") for module in model.modules())


def _head(model: Any) -> nn.Module:
    head: nn.Module = model.model[-1]
    return head


def _inputs(model: nn.Module, batch: Any) -> tuple[Any, ...]:
    """The arguments of ``forward``; the library's loaders yield dicts with bytes under ``img``."""
    if isinstance(batch, Mapping) and isinstance(batch.get("img"), Tensor):
        found = batch["img"]
        return (found if found.is_floating_point() else found.float() / 255,)
    return arguments(model, batch, None)


# Configurations.


def _is_pruned(model: Any) -> bool:
    return _DENSE_BACKBONE in getattr(model, "yaml", ())


def _marked(yaml: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a pruned network, which the library cannot mistake for that of the dense one.

    Wherever the library builds a network from it, it raises a ``KeyError`` that says what to use, instead of
    training a dense network in place of the pruned one.
    """
    if _DENSE_BACKBONE in yaml:
        return dict(yaml)
    first, *rest = yaml["backbone"]
    marked = [*first[:2], _NOT_BUILT, *first[3:]]
    return {**yaml, "backbone": [marked, *rest], _DENSE_BACKBONE: yaml["backbone"]}


def _unmarked(yaml: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the dense network."""
    dense = copy.deepcopy(dict(yaml))
    if _DENSE_BACKBONE in dense:
        dense["backbone"] = dense.pop(_DENSE_BACKBONE)
    return dense


def _dense(kind: Any, yaml: Mapping[str, Any]) -> nn.Module:
    """The network of ``yaml``, with random weights; the global random state is unchanged."""
    given = _unmarked(yaml)
    with Isolation(0, torch.device("cpu")):
        model: nn.Module = kind(given, ch=given.get("channels", 3), nc=given["nc"], verbose=False)
    return model


# The number of classes.


def _fitted(pruned: Any, dense: Any) -> nn.Module:
    """A copy of ``pruned`` for the data set that ``dense`` was built for: its classes, names and dropout.

    Layers that count classes are new where the number of classes changes, as in the library.
    """
    if _is_fused(pruned):
        raise UnsupportedModelError(
            "the layers of this network are fused, for inference only. Train the network as it was before."
        )
    for name, key in (("channels", "channels"), ("keypoints of shape", "kpt_shape")):
        old, new = pruned.yaml.get(key), dense.yaml.get(key)
        if old != new and list(old) != list(new):
            raise DataError(f"the data set has {name} {new}, the pruned network {old}. They must agree.")
    model: Any = copied(pruned).float()
    model.criterion = None
    model.yaml, model.names = _marked(dense.yaml), dense.names
    if pruned.yaml["nc"] != dense.yaml["nc"]:
        _count_classes(_head(model), _head(dense))
    for name, module in dense.named_modules():
        if isinstance(module, nn.Dropout):
            model.get_submodule(name).p = module.p
    model.load(pruned, verbose=False)  # moves the rows of classes that are called the same
    found: nn.Module = model.requires_grad_(True).train()
    return found


def _count_classes(head: Any, dense: nn.Module) -> None:
    """Replaces the layers that count classes by new ones with the outputs and biases of ``dense``."""
    for name in _class_layers(head):
        old: Any = head.get_submodule(name)
        new: Any = dense.get_submodule(name)
        layer: nn.Module
        if isinstance(old, nn.Conv2d):
            kernel: Any = old.kernel_size
            layer = nn.Conv2d(old.in_channels, new.out_channels, kernel)
        elif isinstance(old, nn.Linear):
            layer = nn.Linear(old.in_features, new.out_features)
        else:
            layer = nn.Embedding(new.num_embeddings, old.embedding_dim)
        if isinstance(getattr(new, "bias", None), Tensor):
            layer.load_state_dict({"bias": new.bias}, strict=False)
        owner, _, last = name.rpartition(".")
        setattr(head.get_submodule(owner), last, layer.to(next(old.parameters())))
    for count in ("nc", "no"):
        if hasattr(dense, count):
            setattr(head, count, getattr(dense, count))


def _class_layers(head: nn.Module) -> list[str]:
    """The names of the layers of ``head`` whose outputs are classes, or that embed a class."""
    found = dict(head.named_modules())
    last = [
        name
        for name in found
        for owner in [name.rpartition(".")[0]]
        if owner in ("proto.semseg", "classifier", "aux_head")
        or owner.rpartition(".")[0] in ("cv3", "one2one_cv3")
        if int(name.rpartition(".")[2]) == len(list(found[owner].children())) - 1
    ]
    single = ("linear", "enc_score_head", "denoising_class_embed")
    return last + [name for name in found if name in single or name.startswith("dec_score_head.")]
