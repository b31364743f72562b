"""pyvene 0.1.8: a source-less intervention on the fused queries, keys and values."""

from pathlib import Path

import pyvene
from torch import Tensor
from work import Cell, Sweep, load_model, project_fused

PACKAGE = "pyvene"


class Projection(pyvene.ConstantSourceIntervention):
    """The head and the projectors are set before each forward pass."""

    def __init__(self) -> None:
        super().__init__(keep_last_dim=True)

    def forward(
        self, base: Tensor, source: object = None, subspaces: object = None, **_kwargs: object
    ) -> Tensor:
        return project_fused(base, self.head, self.projectors)  # pyvene hands a copy


class EveryForward(Sweep):
    def __init__(self, weights: Path, tokens: Tensor, projectors: Tensor) -> None:
        super().__init__(weights, tokens, projectors)
        self.model = load_model(weights)
        self.attention = self.model.config._attn_implementation
        self.interventions = [Projection() for _ in self.model.transformer.h]
        self.by_layer = [
            pyvene.IntervenableModel(
                pyvene.IntervenableConfig(
                    {
                        "component": f"transformer.h[{layer}].attn.c_attn.output",
                        "intervention": intervention,
                    }
                ),
                self.model,
            )
            for layer, intervention in enumerate(self.interventions)
        ]

    def unedited(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        return self.model(inputs, use_cache=False).logits

    def edited(self, cell: Cell) -> Tensor:
        intervention = self.interventions[cell.layer]
        intervention.head = cell.head
        intervention.projectors = self.projectors[cell.layer, cell.head, cell.rank]
        _, output = self.by_layer[cell.layer]({"input_ids": self.inputs}, use_cache=False)
        return output.logits


VARIANTS = {"every forward": EveryForward}
