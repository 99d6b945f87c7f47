"""The inputs that a page shows, with the outputs of the dense and the pruned network."""

from __future__ import annotations

import argparse

from disparse_structured.cli import sources
from disparse_structured.cli.data import load_data, load_images
from disparse_structured.cli.folders import Folder
from disparse_structured.pipeline.examples import NUMBER, examples_of
from disparse_structured.report.page.pictures import Example


def shown_examples(arguments: argparse.Namespace) -> list[Example]:
    """The first inputs of ``--images`` or ``--data`` with the outputs of both networks."""
    folder = Folder(arguments)
    pruned = folder.model()
    dense = folder.dense
    if arguments.weights is not None:
        sources.load_weights(dense, arguments.weights)
    data = load_images(arguments, dense) if arguments.images else load_data(arguments.data)
    number = arguments.number or NUMBER
    return examples_of(data, (dense, folder.tasks(dense)), (pruned, folder.tasks(pruned)), number)
