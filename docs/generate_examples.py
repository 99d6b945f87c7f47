"""Writes docs/examples/ from the scripts in examples/: ``python docs/generate_examples.py``."""

from __future__ import annotations

import ast
from pathlib import Path

NAMES = (
    "own_model",
    "timm_multitask",
    "transformers_two_heads",
    "torchvision_segmenter",
    "yolo_segmentation",
    "face_detector",
)
"""The scripts that have a page, in the order of the list."""

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "examples"


def pages() -> dict[str, str]:
    """Markdown by file name: a page for each script, and the list of all."""
    scripts = {name: (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8") for name in NAMES}
    listed = "\n".join(f"- [{_title(text)}]({name}.md)" for name, text in scripts.items())
    index = (
        "# Examples\n\nComplete programs. The tests run each of them, on a small network.\n\n"
        f"{listed}\n\n`python docs/generate_examples.py` writes these pages from the scripts in the "
        "repository's `examples` folder.\n"
    )
    return {"README.md": index} | {f"{name}.md": _page(name, text) for name, text in scripts.items()}


def _page(name: str, text: str) -> str:
    docstring = ast.parse(text).body[0]
    story = _docstring(text).partition("\n")[2].strip()
    code = "\n".join(text.splitlines()[docstring.end_lineno :]).strip()
    return (
        f"# {_title(text)}\n\n{story}\n\n## The script\n\n`examples/{name}.py`:\n\n```python\n{code}\n```\n"
    )


def _title(text: str) -> str:
    return _docstring(text).partition("\n")[0].rstrip(".")


def _docstring(text: str) -> str:
    return ast.get_docstring(ast.parse(text)) or ""


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for file, page in pages().items():
        (TARGET / file).write_text(page, encoding="utf-8")
