"""The demo, end to end in its quick form, and the pictures it draws."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from matplotlib import image as png

from disparse_structured.decision.plan import Plan
from disparse_structured.errors import DisparseError
from disparse_structured.lab import demo, scenes
from disparse_structured.lab.demo import QUICK, TaskOutcome, flow
from disparse_structured.lab.demo.progress import Progress
from disparse_structured.lab.metrics import delta_t
from disparse_structured.report.figures import Sight, draw_comparison, heat, label_colors, normal_colors
from disparse_structured.structure import count_macs, count_parameters
from disparse_structured.surgery.saving import load

pytestmark = pytest.mark.xdist_group("demo")
"""One process runs the demo for all."""

SEED = 3


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    folder.mkdir(parents=True)
    for name in ("model.int8.onnx", "report.html", "settings.toml"):
        (folder / name).write_text("of an earlier run")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = demo.run(folder, seed=SEED, quick=True, progress=False)
    assert said.getvalue() == "", "without progress nothing is printed"
    return found


@pytest.fixture(scope="module")
def folder(result: demo.DemoResult) -> Path:
    return Path(result.folder)


@pytest.fixture(scope="module")
def document(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> torch.nn.Module:
    return load(folder, functools.partial(demo.network, QUICK)).eval()


def test_writes_what_it_names_and_nothing_else(result, folder):
    assert {path.name for path in folder.iterdir()} == set(result.files)
    assert set(result.files) == {
        "plan.json",
        "weights.safetensors",
        "report.json",
        "model.onnx",
        "picture.png",
    }


def test_the_saved_folder_and_the_onnx_file_are_the_same_network(folder, loaded):
    images = torch.stack([scenes.render(number, QUICK.size)["image"] for number in range(3)])
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == list(scenes.HEADS)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        wanted = loaded(images)
    for name, values in zip(names, found, strict=True):
        right = wanted[name].numpy()
        assert np.abs(values - right).max() <= 1e-4 * np.abs(right).max()


def test_meets_the_budget(document, loaded):
    inputs = loaded.example_inputs()
    dense = demo.network(QUICK)
    assert document["costs"]["macs"]["dense"] == count_macs(dense, inputs)
    assert document["costs"]["macs"]["counted"] == count_macs(loaded, inputs)
    assert 0.49 <= document["costs"]["macs"]["counted"] / document["costs"]["macs"]["dense"] <= 0.5
    assert document["costs"]["parameters"]["counted"] == count_parameters(loaded) < count_parameters(dense)
    assert document["verification"]["verified"]


def test_prunes_without_labels_and_drops_the_deviation_that_training_ends(document):
    assert not any(task["labeled"] for task in document["tasks"])
    assert document["method"] == "Compensated"
    assert 0 < document["samples"] <= QUICK.calibration  # some are set aside
    assert document["refit"] is not None
    assert document["deviation"] is None


def test_the_report_says_what_the_folder_holds(result, folder, document, loaded):
    assert document["plan"] == Plan.load(folder / "plan.json").hash
    assert document["export"]["metadata"]["plan"] == document["plan"]
    assert document["export"]["bytes"] == (folder / "model.onnx").stat().st_size
    assert document["demo"]["onnx_bytes"]["pruned"] == document["export"]["bytes"]
    assert {fact["task"] for fact in document["export"]["parity"]} == set(scenes.HEADS)
    assert [model["name"] for model in document["latency"]["models"]] == ["dense", "pruned"]
    assert document["latency"]["threads"] == 1
    plain = json.loads(json.dumps(result.to_dict()))
    added = {"computes", "weights_changed", "weights_sha256"}  # written with the weights
    described = {name: entry for name, entry in document.items() if name not in added}
    assert plain == {"folder": str(folder), "files": list(result.files), "report": described}


def test_the_figures_are_those_of_the_saved_network(document, loaded):
    again = demo.evaluate(loaded, flow.render(QUICK, SEED).held_out)
    tasks = {task["name"]: task for task in document["demo"]["tasks"]}
    assert {name: task["finetuned"] for name, task in tasks.items()} == pytest.approx(again, rel=1e-4)
    for stage in ("pruned", "finetuned"):
        figures = [{name: task[key] for name, task in tasks.items()} for key in ("dense", stage)]
        directions = {name: higher for name, (_, higher) in scenes.HEADLINES.items()}
        assert document["demo"]["delta_t"][stage] == pytest.approx(delta_t(*figures, directions))


def test_the_same_seed_gives_the_same_plan_byte_for_byte(folder):
    data, progress = flow.render(QUICK, SEED), Progress(shown=False)
    torch.manual_seed(99)  # the state of the global generator must not matter
    dense = demo.network(QUICK, SEED)
    flow.fit(dense, data, QUICK.epochs, QUICK.lr, SEED, progress)
    again = flow.shrink(dense, data, QUICK, SEED, progress)
    assert again.plan.to_json() + "\n" == (folder / "plan.json").read_text(encoding="utf-8")


def test_another_seed_gives_another_network_and_other_scenes():
    networks = [demo.network(QUICK, seed).state_dict() for seed in (0, 0, 1)]
    first = next(name for name in networks[0] if name.endswith("weight"))
    assert torch.equal(networks[0][first], networks[1][first])
    assert not torch.equal(networks[0][first], networks[2][first])
    seen = []
    for data in (flow.render(QUICK, 0), flow.render(QUICK, 1)):
        first_images = data.training.dataset[0]["image"], data.images[0], data.held_out[0]["image"][0]
        seen += [image.sum().item() for image in first_images]
    assert len(set(seen)) == len(seen)


def test_the_picture_is_a_png_worth_looking_at(folder):
    pixels = png.imread(folder / "picture.png")
    height, width = pixels.shape[:2]
    assert width > 1500
    assert 400 < height < width
    colors = (pixels[..., :3] * 255).astype(int) @ (1, 256, 65536)
    assert len(np.unique(colors)) > 300


def test_the_text_names_every_task_and_every_cost(result):
    text = str(result)
    for word in (
        *scenes.HEADS,
        "ΔT",
        "MACs",
        "parameters",
        "ONNX file",
        "latency, threads: 1",
        "masked twin",
    ):
        assert word in text
    for task in result.tasks:
        assert all(task.text(stage) in text for stage in ("dense", "pruned", "finetuned"))
    assert result.folder.rsplit("/", 1)[1] in text
    assert max(len(line.rstrip()) for line in text.splitlines() if "written to" not in line) <= 110


@pytest.mark.parametrize(
    ("metric", "higher", "after", "change", "shown"),
    [
        ("miou", True, 0.6, 20.0, "0.600"),
        ("miou", True, 0.4, -20.0, "0.400"),
        ("abs_error", False, 0.4, 20.0, "0.400 m"),
        ("mean_angle", False, 0.6, -20.0, "0.6°"),
        ("l1", False, 0.5, 0.0, "0.500"),
    ],
)
def test_a_change_above_zero_is_better_for_every_metric(metric, higher, after, change, shown):
    outcome = TaskOutcome("task", metric, higher, dense=0.5, pruned=after, finetuned=0.5)
    assert outcome.change("pruned") == pytest.approx(change)
    assert outcome.change("finetuned") == 0.0
    assert outcome.text("pruned") == shown


def test_progress_tells_steps_and_losses_on_standard_error(capsys):
    progress = Progress(shown=True)
    with progress.step("train", "some epochs"):
        progress.losses(1, {"depth": 0.25, "edges": 0.5})
    out, err = capsys.readouterr()
    assert out == ""
    assert "train: some epochs" in err
    assert "epoch 2  depth 0.250  edges 0.500" in err
    assert progress.seconds.keys() == {"train"}


def test_refuses_a_file_for_a_folder_before_any_work(tmp_path):
    path = tmp_path / "taken"
    path.write_text("mine")
    with pytest.raises(DisparseError, match=r"the folder .*taken.* cannot be created: .*Choose another one"):
        demo.run(path, quick=True, progress=False)
    assert path.read_text() == "mine"


def test_says_how_to_get_matplotlib_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what Python itself does for a blocked import
    with pytest.raises(DisparseError, match=r"pip install 'disparse-structured\[figures\]'"):
        demo.run(tmp_path / "out", quick=True, progress=False)
    assert not (tmp_path / "out").exists()


def test_every_map_is_drawn_once_at_its_place(tmp_path):
    codes = iter(np.linspace(0.1, 0.9, 14))
    flat = lambda: np.full((6, 8, 3), (next(codes), 0.2, 0.6))  # noqa: E731
    rows, columns = ("truth", "dense", "pruned"), ("depth", "edges")
    sights = [Sight(flat(), {row: {column: flat() for column in columns} for row in rows}) for _ in range(2)]
    path = tmp_path / "picture.png"
    path.write_text("an older one")
    draw_comparison(path, sights, {column: f"{column}\nwell" for column in columns}, title="A", subtitle="b")
    assert [each.name for each in tmp_path.iterdir()] == ["picture.png"]
    pixels = png.imread(path)[..., :3]

    def found(image: np.ndarray) -> tuple[int, float, float]:
        y, x = (np.abs(pixels - image[0, 0]) < 1 / 200).all(axis=2).nonzero()
        return len(x), y.mean(), x.mean()

    tiles = [[[found(sight.rows[row][column]) for column in columns] for row in rows] for sight in sights]
    tiles = np.array(tiles)  # [scenes, rows, columns, (area, y, x)]
    areas, down, across = np.moveaxis(tiles, -1, 0)
    assert areas.min() > 0.97 * areas.max() > 10_000
    assert (np.diff(down.mean(axis=2).ravel()) > 0).all()
    assert np.ptp(down, axis=2).max() < 2
    assert (across[..., 0] < across[..., 1]).all()
    for number, sight in enumerate(sights):
        area, y, x = found(sight.seen)
        assert area > 8 * areas.max()
        assert x < across.min()
        assert y == pytest.approx(down[number].mean(), abs=2)


def test_an_empty_picture_is_refused(tmp_path):
    with pytest.raises(DisparseError, match="nothing to draw: 0 scenes and 1 columns"):
        draw_comparison(tmp_path / "picture.png", [], {"depth": "depth"}, title="")
    assert list(tmp_path.iterdir()) == []


def test_colors_of_normals_heat_and_labels():
    normals = np.array([[0.0, 0.0, 2.0], [0.0, -1.0, 0.0], [-3.0, 0.0, 0.0]])[..., None]  # [3, 3 pixels, 1]
    toward, up, right = normal_colors(normals)[:, 0]
    assert toward == pytest.approx([0.5, 0.5, 1.0]), "toward the camera, of any length"
    assert up == pytest.approx([0.5, 1.0, 0.5]), "y points down"
    assert right == pytest.approx([1.0, 0.5, 0.5])

    shades = heat(np.array([[-9.0, 1.0, 3.0, 99.0]]), 1.0, 3.0, "gray_r")[0]
    assert shades[0] == pytest.approx(shades[1])
    assert shades[1].min() > 0.95
    assert shades[2] == pytest.approx(shades[3])
    assert shades[3].max() < 0.05

    labels = label_colors(np.arange(13)[None])[0]
    assert len(np.unique(labels, axis=0)) == 12
    assert labels[0] == pytest.approx(labels[12])
    assert labels.min() >= 0
    assert labels.max() <= 1
