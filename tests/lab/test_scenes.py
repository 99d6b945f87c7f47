"""Laws of the rendered scenes: the ground truth is exact and its parts agree with each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from disparse_structured.lab.scenes import (
    CLASSES,
    HEADLINES,
    HEADS,
    TRUTHS,
    Scenes,
    focal_length,
    metrics,
    render,
    scene_loader,
    tasks,
)

SEEDS = range(12)
FLAT = [CLASSES.index(name) for name in ("floor", "wall", "ceiling", "box", "picture")]
ROUND = [CLASSES.index(name) for name in ("sphere", "cylinder", "cone")]


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, Tensor]]:
    return [render(seed, (96, 128)) for seed in SEEDS]


def sight(depth: Tensor) -> Tensor:
    """Rays ``[3, H, W]`` through the pixel centers, with z = 1."""
    height, width = depth.shape[-2:]
    x = (torch.arange(width) + 0.5 - width / 2).expand(height, width)
    y = (torch.arange(height) + 0.5 - height / 2)[:, None].expand(height, width)
    rays = torch.stack((x, y, torch.full((height, width), focal_length(width)))).double()
    return rays / rays[2]


def back_project(depth: Tensor) -> Tensor:
    return sight(depth) * depth.double()


def neighbors(values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each pixel with its right and with its lower neighbor, ``[..., H - 1, W - 1]``."""
    here = values[..., :-1, :-1]
    return [(here, values[..., :-1, 1:]), (here, values[..., 1:, :-1])]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), height=st.integers(1, 40), width=st.integers(1, 56))
def test_shapes_types_ranges_and_finiteness(seed: int, height: int, width: int) -> None:
    scene = render(seed, (height, width))
    assert {name: (tuple(v.shape), v.dtype) for name, v in scene.items()} == {
        "image": ((3, height, width), torch.float32),
        "labels": ((height, width), torch.int64),
        "depth": ((1, height, width), torch.float32),
        "normals": ((3, height, width), torch.float32),
        "edges": ((1, height, width), torch.float32),
        "keypoints": ((1, height, width), torch.float32),
    }
    assert all(value.isfinite().all() for value in scene.values())
    for name in ("image", "edges", "keypoints"):
        assert 0 <= scene[name].min() <= scene[name].max() <= 1
    assert set(scene["labels"].unique().tolist()) <= set(range(len(CLASSES)))
    assert 0 < scene["depth"].min() <= scene["depth"].max() < 12


def test_the_same_seed_is_the_same_scene_and_another_seed_another() -> None:
    first, again, other = render(5), render(5), render(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_same_seed_is_the_same_scene_at_every_size() -> None:
    # Of 3 x 3 small pixels the middle one looks along the same ray as the large pixel.
    small, large = render(3, (24, 32)), render(3, (72, 96))
    for name in ("labels", "depth", "normals"):
        assert torch.allclose(large[name][..., 1::3, 1::3], small[name], atol=1e-5)


def test_normals_are_unit_and_face_the_camera(scenes: list[dict[str, Tensor]]) -> None:
    for scene in scenes:
        normals = scene["normals"].double()
        assert torch.allclose(normals.norm(dim=0), torch.ones(96, 128).double(), atol=1e-6)
        assert ((normals * sight(scene["depth"])).sum(0) < 1e-6).all()


def test_floor_looks_up_and_ceiling_down_and_walls_sideways(scenes: list[dict[str, Tensor]]) -> None:
    for scene in scenes:
        labels, down = scene["labels"], scene["normals"][1]
        floor, wall, ceiling = (CLASSES.index(name) for name in ("floor", "wall", "ceiling"))
        up = scene["normals"][:, labels == floor].double().mean(1)
        assert down[labels == floor].max() < -0.5
        assert torch.allclose(scene["normals"][:, labels == ceiling].T.double(), -up, atol=1e-5)
        assert ((scene["normals"][:, labels == wall].T.double() @ up).abs() < 1e-5).all()


def test_flat_surfaces_are_flat_between_edges(scenes: list[dict[str, Tensor]]) -> None:
    """Truth is exact: off the edges, a neighbor on a flat class lies in the plane of the pixel's normal."""
    checked = 0
    for scene in scenes:
        keep = (scene["edges"][0, :-1, :-1] == 0) & torch.isin(scene["labels"], torch.tensor(FLAT))[:-1, :-1]
        normal = scene["normals"][:, :-1, :-1].double()
        for here, there in neighbors(back_project(scene["depth"])):
            offset = ((there - here) * normal).sum(0)[keep]
            assert offset.abs().max() < 1e-5
            checked += offset.numel()
    assert checked > 100_000


def test_normals_agree_with_finite_differences_of_the_back_projected_depth(
    scenes: list[dict[str, Tensor]],
) -> None:
    for labels, limit in ((FLAT, 0.05), (ROUND, 3.0)):
        angles = []
        for scene in scenes:
            points = back_project(scene["depth"])
            # Central differences, where neither the pixel nor a neighbor used touches an edge.
            across, down = (
                points[:, 1:-1, 2:] - points[:, 1:-1, :-2],
                points[:, 2:, 1:-1] - points[:, :-2, 1:-1],
            )
            found = torch.nn.functional.normalize(torch.linalg.cross(down, across, dim=0), dim=0)
            clear = torch.nn.functional.max_pool2d(scene["edges"][None], 3, 1, 1)[0, 0, 1:-1, 1:-1] == 0
            clear &= torch.isin(scene["labels"], torch.tensor(labels))[1:-1, 1:-1]
            cosine = (found * scene["normals"][:, 1:-1, 1:-1].double()).sum(0)[clear]
            angles.append(torch.rad2deg(cosine.clamp(-1, 1).acos()))
        assert torch.cat(angles).numel() > 3000
        assert torch.cat(angles).quantile(0.95) < limit


def test_edges_are_where_something_changes(scenes: list[dict[str, Tensor]]) -> None:
    for scene in scenes:
        edge = scene["edges"][0, :-1, :-1] == 1
        relabeled = torch.zeros_like(edge)
        bent = torch.zeros_like(edge)
        jumped = torch.zeros_like(edge)
        for here, there in neighbors(scene["labels"]):
            relabeled |= here != there
        for here, there in neighbors(scene["normals"]):
            bent |= (here - there).norm(dim=0) > 1e-3
        normal = scene["normals"][:, :-1, :-1].double()
        for here, there in neighbors(back_project(scene["depth"])):
            jumped |= ((there - here) * normal).sum(0).abs() > 1e-3
        assert edge[relabeled].all()
        assert (relabeled | bent | jumped)[edge].all()
        assert 0.01 < edge.float().mean() < 0.3


def test_depth_jumps_are_edges(scenes: list[dict[str, Tensor]]) -> None:
    for scene in scenes:
        flat = torch.isin(scene["labels"], torch.tensor(FLAT))
        edge = scene["edges"][0, :-1, :-1] == 1
        plane = (scene["normals"].double() * back_project(scene["depth"])).sum(0)
        # Where the plane through the pixel would put its neighbor, compared with where it is.
        for (here, there), (_, is_flat) in zip(
            neighbors(torch.cat((back_project(scene["depth"]), plane[None]))), neighbors(flat), strict=True
        ):
            off = (there[:3] * scene["normals"][:, :-1, :-1].double()).sum(0) - here[3]
            assert edge[(off.abs() > 0.02) & is_flat & flat[:-1, :-1]].all()


def peaks(heat: Tensor) -> Tensor:
    """Pixels ``[n, 2]`` (row, column) that no neighbor overtops."""
    highest = torch.nn.functional.max_pool2d(heat[None], 3, 1, 1)[0]
    return ((heat == highest) & (heat > 0.01))[0].nonzero()


def test_keypoints_lie_inside_the_image(scenes: list[dict[str, Tensor]]) -> None:
    # The pixel that holds a keypoint is within half a pixel of it both ways; bumps are 2 pixels wide here.
    # One beyond the border would leave a lower summit at the border.
    for scene in scenes:
        rows, columns = peaks(scene["keypoints"]).T
        assert len(rows) >= 3
        assert (
            scene["keypoints"][0, rows, columns] >= math.exp(-(0.5**2 + 0.5**2) / (2 * 2.0**2)) - 1e-6
        ).all()


def test_keypoints_sit_on_what_is_seen(scenes: list[dict[str, Tensor]]) -> None:
    """Off the edges, a bump is the middle of a sphere or of a lid: none shows through an object."""
    middles = {"sphere": 0, "cylinder": 0}
    for scene in scenes:
        near_edge = torch.nn.functional.max_pool2d(scene["edges"][None], 5, 1, 2)[0, 0] == 1
        rays = torch.nn.functional.normalize(sight(scene["depth"]), dim=0)
        up = scene["normals"][:, scene["labels"] == CLASSES.index("floor")].double().mean(1)
        for row, column in peaks(scene["keypoints"]).tolist():
            if near_edge[row, column]:
                continue
            normal = scene["normals"][:, row, column].double()
            on = CLASSES[scene["labels"][row, column]]
            assert on in middles
            if on == "sphere":
                assert normal @ rays[:, row, column] < -0.9
            else:
                assert normal @ up > 0.999
            middles[on] += 1
    assert all(count >= 3 for count in middles.values()), middles


def test_a_corner_in_view_is_a_keypoint(scenes: list[dict[str, Tensor]]) -> None:
    """Where three faces at right angles meet at one depth, there is a corner of the room or of a box."""
    corners = 0
    for scene in scenes:
        flat = torch.isin(scene["labels"], torch.tensor(FLAT))
        normals, depth = scene["normals"].double(), scene["depth"][0]
        heat = torch.nn.functional.max_pool2d(scene["keypoints"][None], 3, 1, 1)[0, 0]
        for row, column in (scene["edges"][0, 2:-2, 2:-2] == 1).nonzero().tolist():
            window = (slice(row + 1, row + 4), slice(column + 1, column + 4))
            if not flat[window].all() or depth[window].max() / depth[window].min() > 1.05:
                continue
            faces = normals[(slice(None), *window)].flatten(1).T.unique(dim=0)
            if len(faces) == 3 and (faces @ faces.T - torch.eye(3)).abs().max() < 1e-4:
                corners += 1
                assert heat[row + 2, column + 2] > 0.6
    assert corners > 40


def test_images_do_not_give_the_labels_away(scenes: list[dict[str, Tensor]]) -> None:
    """No class has its own color: class means differ less between classes than within."""
    means: dict[int, list[Tensor]] = {label: [] for label in range(len(CLASSES))}
    for scene in scenes:
        for label in scene["labels"].unique().tolist():
            means[label].append(scene["image"][:, scene["labels"] == label].mean(1))
    stacked = [torch.stack(values) for values in means.values() if len(values) > 2]
    between = torch.stack([values.mean(0) for values in stacked]).std(0).mean()
    within = torch.stack([values.std(0) for values in stacked]).mean()
    assert between < within


def test_every_class_occurs_often() -> None:
    counts = torch.zeros(len(CLASSES))
    for index in range(60):
        counts[Scenes(60, (24, 32), seed=1)[index]["labels"].unique()] += 1
    assert (counts >= 15).all(), dict(zip(CLASSES, counts.tolist(), strict=True))


def test_scenes_depend_on_seed_and_index_alone() -> None:
    some, same, more, other = (
        Scenes(3, seed=1),
        Scenes(3, seed=1, cache=True),
        Scenes(9, seed=1),
        Scenes(3, seed=2),
    )
    assert len(some) == 3
    for _ in range(2):
        assert torch.equal(some[2]["image"], same[2]["image"])
    assert torch.equal(some[2]["image"], more[2]["image"])
    assert not torch.equal(some[2]["image"], other[2]["image"])
    assert not torch.equal(some[0]["image"], some[1]["image"])
    with pytest.raises(IndexError, match="scene 3 of 3"):
        some[3]


def test_loader_batches_everything() -> None:
    loader = scene_loader(5, batch_size=2, size=(12, 16), seed=3)
    found = list(loader)
    assert [len(batch["image"]) for batch in found] == [2, 2, 1]
    assert found[0]["labels"].shape == (2, 12, 16)
    assert found[0]["normals"].shape == (2, 3, 12, 16)
    again = list(loader)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(found, again, strict=True))
    assert torch.equal(found[1]["depth"][1], Scenes(5, (12, 16), seed=3)[3]["depth"])


def test_tasks_train_and_judge_what_the_batches_hold() -> None:
    batch = next(iter(scene_loader(3, batch_size=3, size=(12, 16))))
    names = [task.name for task in tasks()]
    assert names == list(HEADS) == list(TRUTHS) == list(HEADLINES) == list(metrics())
    perfect = {
        "segmentation": torch.nn.functional.one_hot(batch["labels"], len(CLASSES)).movedim(-1, 1) * 50.0,
        "depth": batch["depth"],
        "normals": batch["normals"] * 3.0,
        "edges": torch.logit(batch["edges"], eps=1e-7),
        "keypoints": torch.logit(batch["keypoints"], eps=1e-7),
    }
    poor = {name: torch.randn(value.shape) for name, value in perfect.items()}
    assert {name: value.shape[1] for name, value in perfect.items()} == dict(HEADS)
    for task in tasks():
        assert task.loss is not None
        assert task.loss(task.pick(perfect), batch) < task.loss(task.pick(poor), batch)
        name, higher = HEADLINES[task.name]
        figures = []
        for outputs in (perfect, poor):
            metric = metrics()[task.name]
            metric.update(task.pick(outputs), batch[TRUTHS[task.name]])
            figures.append(metric.compute()[name])
        assert figures[0] == pytest.approx(1.0 if higher else 0.0, abs=1e-4)
        assert (figures[0] > figures[1]) == higher


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_a_size_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        render(0, size)
