"""What is said when a model cannot be captured, and captures in several threads."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

import disparse_structured as ds
from disparse_structured.errors import CaptureError

REPRODUCES = "torch.export.export(model.eval(), example_inputs, strict=False) reproduces this"

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 1e9 else super().forward(-x)


FAILURES: queue.SimpleQueue[str] = queue.SimpleQueue()


class Once(Net):
    """Fails while ``FAILURES`` holds something, which it takes out."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() and not FAILURES.empty():
            raise RuntimeError(FAILURES.get())
        return super().forward(x)


class Fixed(Net):
    """Runs in the type of its weights only as long as that is bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        if self.first.weight.dtype != torch.bfloat16:
            raise RuntimeError("it is not bfloat16")
        return super().forward(x)


@contextlib.contextmanager
def running(name: str) -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name=name)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_that_torch_reproduces_a_failure_is_said_where_it_does() -> None:
    with pytest.raises(CaptureError, match="could not capture Branching") as caught:
        ds.analyse(Branching(), X)

    assert REPRODUCES in str(caught.value)
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(Branching().eval(), (X,), strict=False)


def test_a_model_that_refuses_the_inputs_itself_is_not_said_to_be_impossible_to_capture() -> None:
    with pytest.raises(ds.errors.BatchError, match=r"^Net refused a batch, called with \(\(2, 9\)"):
        ds.analyse(Net(), torch.zeros(2, 9), [ds.Task("out", ())])


def test_it_is_not_said_where_torch_alone_succeeds() -> None:
    FAILURES.put("once")

    with pytest.raises(CaptureError, match="could not capture Once: RuntimeError: once") as caught:
        ds.analyse(Once(), X)

    assert "reproduces" not in str(caught.value)
    assert "please report this model" in str(caught.value)


def test_it_is_not_said_of_a_copy_in_another_precision() -> None:
    with pytest.raises(CaptureError, match=r"^Fixed does not run in float32, in which") as caught:
        ds.prune(Fixed().to(torch.bfloat16).eval(), X.to(torch.bfloat16), macs=0.5, method=ds.DiSparse())

    assert "it is not bfloat16" in str(caught.value)
    assert "torch.export.export(" not in str(caught.value)


def test_it_is_not_said_of_other_batches() -> None:
    class Even(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 5:
                raise RuntimeError("five")
            return super().forward(x)

    model = Even().eval()
    structure = ds.analyse(model, X[:2])

    with pytest.raises(ds.errors.BatchError, match="five") as caught:
        ds.score(model, structure, [X[:5]], to_inputs=lambda batch: (batch,))

    assert "torch.export.export(" not in str(caught.value)


def test_other_threads_are_named_as_the_possible_reason() -> None:
    with (
        running("the server"),
        pytest.raises(CaptureError, match=r"unless another thread .*the server") as caught,
    ):
        ds.analyse(Branching(), X)

    assert REPRODUCES in str(caught.value)


def test_branches_of_torch_are_named_with_what_to_write_instead() -> None:
    class Chooses(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(torch.cond(y.sum() > 0, torch.relu, torch.tanh, (y,)))

    with pytest.raises(CaptureError, match=r"Chooses calls torch's cond, .* torch.where chooses"):
        ds.prune(Chooses().eval(), X, macs=0.5)


def test_the_thread_of_a_progress_bar_is_no_reason() -> None:
    with tqdm(range(3), file=io.StringIO()), pytest.raises(CaptureError) as caught:
        ds.analyse(Branching(), X)

    assert "tqdm_monitor" in {each.name for each in threading.enumerate()}
    assert "tqdm_monitor" not in str(caught.value)


def test_networks_are_pruned_in_two_threads_as_one_after_the_other() -> None:
    torch.manual_seed(0)
    models = [Net().eval() for _ in range(4)]

    def pruned(model: Net) -> Tensor:
        return ds.prune(model, X, macs=0.5).model(X)

    alone = [pruned(model) for model in models]
    with ThreadPoolExecutor(2) as pool:
        together = [pool.submit(pruned, model) for model in models]

        assert all(torch.equal(one, other.result()) for one, other in zip(alone, together, strict=True))
