"""A transformers backbone with two heads: the intent of a sentence, and a tag for each word.

One BERT reads the sentence. The head `intent` reads the first token, and the head `slots` reads every token.
Where both tasks agree, pruning removes attention heads, and channels of the MLPs and of the hidden width.

The backbone has random weights here, and the sentences are random tokens of different lengths. In your
program, use `AutoModel.from_pretrained(...)`, and batches from your tokenizer.

    pip install "disparse-structured[all,transformers]"
    python examples/transformers_two_heads.py
"""

from __future__ import annotations

import onnxruntime
import torch
from transformers import BertConfig, BertModel

import disparse_structured as ds
from disparse_structured.adapters.transformers import MultiTask, PooledHead, TokenHead


def build(hidden: int = 128, layers: int = 4) -> MultiTask:
    """The dense network: a backbone without its own pooler, and two heads."""
    config = BertConfig(
        vocab_size=1000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
    )  # fmt: skip
    backbone = BertModel(config, add_pooling_layer=False)
    return MultiTask(backbone, {"intent": PooledHead(7), "slots": TokenHead(12)}).eval()


def sentences(count: int, length: int = 24) -> dict[str, torch.Tensor]:
    """A batch as a tokenizer returns it: tokens, and which of them are padding."""
    lengths = torch.randint(4, length + 1, (count, 1))
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": torch.randint(1, 1000, (count, length)) * mask, "attention_mask": mask}


def main(hidden: int = 128, layers: int = 4, count: int = 64) -> None:
    torch.manual_seed(0)
    model, batch = build(hidden, layers), sentences(count)

    result = ds.prune(model, batch, macs=0.5, method=ds.DiSparse(arbiter=ds.arbiters.Unanimous()))
    print(result.report)

    result.save("small")
    facts = result.export("small/model.onnx")  # checked against PyTorch
    print("largest difference in ONNX Runtime:", max(fact.max_abs for fact in facts.parity))

    again = ds.load("small", lambda: build(hidden, layers))
    session = onnxruntime.InferenceSession("small/model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["intent", "slots"], {name: value.numpy() for name, value in batch.items()})
    with torch.no_grad():
        expected = again(**batch)
    for name, output in zip(("intent", "slots"), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name], atol=1e-3, rtol=1e-3)


if __name__ == "__main__":
    main()
