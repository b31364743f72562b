"""nnsight 0.8.1: traces of Hugging Face's model; the expert skips the blocks before the edit."""

from pathlib import Path

from nnsight import NNsight
from torch import Tensor
from work import Cell, Sweep, load_model, project_fused

PACKAGE = "nnsight"


class EveryForward(Sweep):
    def __init__(self, weights: Path, tokens: Tensor, projectors: Tensor) -> None:
        super().__init__(weights, tokens, projectors)
        original = load_model(weights)
        self.attention = original.config._attn_implementation
        self.model = NNsight(original)

    def unedited(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        with self.model.trace(inputs, use_cache=False):
            logits = self.model.output.logits.save()
        return logits

    def edited(self, cell: Cell) -> Tensor:
        projectors = self.projectors[cell.layer, cell.head, cell.rank]
        linear = self.model.transformer.h[cell.layer].attn.c_attn
        with self.model.trace(self.inputs, use_cache=False):
            linear.output = project_fused(linear.output, cell.head, projectors)
            logits = self.model.output.logits.save()
        return logits


class Skip(EveryForward):
    def unedited(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        after = []  # each block's output, [sequence, position, width]
        with self.model.trace(inputs, use_cache=False):
            for block in self.model.transformer.h:
                after.append(block.output.save())
            logits = self.model.output.logits.save()
        self.after = after
        return logits

    def edited(self, cell: Cell) -> Tensor:
        projectors = self.projectors[cell.layer, cell.head, cell.rank]
        blocks = self.model.transformer.h
        linear = blocks[cell.layer].attn.c_attn
        with self.model.trace(self.inputs, use_cache=False):
            for block, output in zip(blocks, self.after[: cell.layer], strict=False):
                block.skip(output)
            linear.output = project_fused(linear.output, cell.head, projectors)
            logits = self.model.output.logits.save()
        return logits


VARIANTS = {"every forward": EveryForward, "skip": Skip}
