"""Plain PyTorch hooks on Hugging Face's model; the expert runs the blocks by hand from a prefix."""

from pathlib import Path

from torch import Tensor
from work import Cell, Sweep, load_model, project_fused

PACKAGE = "transformers"


class EveryForward(Sweep):
    def __init__(self, weights: Path, tokens: Tensor, projectors: Tensor) -> None:
        super().__init__(weights, tokens, projectors)
        self.model = load_model(weights).to(tokens.device, projectors.dtype)
        self.attention = self.model.config._attn_implementation

    def unedited(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        return self.model(inputs, use_cache=False).logits

    def edited(self, cell: Cell) -> Tensor:
        projectors = self.projectors[cell.layer, cell.head, cell.rank]

        def hook(_module: object, _inputs: object, fused: Tensor) -> Tensor:
            return project_fused(fused, cell.head, projectors)

        handle = self.model.transformer.h[cell.layer].attn.c_attn.register_forward_hook(hook)
        try:
            return self.run(cell)
        finally:
            handle.remove()

    def run(self, cell: Cell) -> Tensor:
        return self.model(self.inputs, use_cache=False).logits


class Prefix(EveryForward):
    """Layers before the edited one are those of the model: run once a batch."""

    def unedited(self, inputs: Tensor) -> Tensor:
        body = self.model.transformer
        residual = body.wte(inputs) + body.wpe.weight[: inputs.shape[1]]
        self.before = []  # each block's input, [sequence, position, width]
        for block in body.h:
            self.before.append(residual)
            residual = block(residual)  # SDPA without a mask is causal here
        return self.model.lm_head(body.ln_f(residual))

    def run(self, cell: Cell) -> Tensor:
        body = self.model.transformer
        residual = self.before[cell.layer]
        for block in body.h[cell.layer :]:
            residual = block(residual)
        return self.model.lm_head(body.ln_f(residual))


VARIANTS = {"every forward": EveryForward, "prefix": Prefix}
