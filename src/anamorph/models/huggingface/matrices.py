"""Which matrices of a Hugging Face model stand behind which sites, found by running a few tokens.

What a module gives is compared by value with what the model has at the sites of heads: so the
queries, keys and values are told apart that a model keeps in one matrix, and what stands between
them and the scores is noticed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.machine.devices import in_float64
from anamorph.models.base import Batch, LayerKind, Model, Recorded
from anamorph.models.huggingface.calls import Block, Heads
from anamorph.models.matrices import Matrix, named_linear
from anamorph.models.sites import Site
from anamorph.models.wrapped import same_up_to_rounding

OF_HEADS = ("query", "key", "value", "heads")


@dataclass
class Watched:
    """What the linear modules of a model were given and gave.

    Attributes:
        names: their paths.
        given: by module its input.
        gave: by module its output.
        times: how often each ran.
    """

    names: dict[nn.Module, str]
    given: dict[nn.Module, Tensor] = field(default_factory=dict)
    gave: dict[nn.Module, Tensor] = field(default_factory=dict)
    times: Counter[nn.Module] = field(default_factory=Counter)

    def __call__(self, module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        """Take in a call of a module, as a forward hook."""
        if given and isinstance(out, Tensor):  # not of a router, which is linear and more
            self.given[module], self.gave[module] = given[0].clone(), out.clone()
            self.times[module] += 1

    def matrices(self, modules: Sequence[nn.Module]) -> list[Matrix]:
        """The whole matrices of some modules, with those told that are given the same."""
        found: list[Matrix] = []
        for module in modules:
            x = self.given[module]
            same = (m.inputs for m in found if torch.equal(self.given[m.inputs], x))
            found.append(Matrix(self.names[module], module, next(same, module)))
        return found


class BlockMatrices:
    """The matrices of one block.

    Args:
        block: whose.
        watched: what its modules were given and gave, for tokens [batch, position].
        has: what the model has at sites of heads, by kind, [batch, (head,) position, dim].
        tokens: how many there were.
    """

    def __init__(self, block: Block, watched: Watched, has: dict[str, Tensor], tokens: int) -> None:
        self.block, self.watched, self.has, self.tokens = block, watched, has, tokens

    def at(self, site: Site) -> list[Matrix]:
        """See `anamorph.models.base.Model.matrices`.

        Raises:
            AnamorphError: if there are none, or they cannot be told; says why.
        """
        port, heads = self.block.ports.get("mlp"), self.block.heads
        if site.kind == "mlp" and port is not None and len(_linear(port.module)) > 1:
            return self._of(site, _linear(port.module), port.module.modules())
        if heads is None:
            raise _unknown(site, f"its attention is not known, as {self.block.headless}")
        if heads.module is self.block.module:
            raise _unknown(site, "its attention is no module of its own")
        inside = set(heads.module.modules())
        attention = [m for m in _linear(self.block.module) if m in inside or self._ends(m)]
        if site.kind == "mlp":  # of which the module that gives its output holds the last alone
            rest = [m for m in self.block.module.modules() if m not in {*inside, *attention}]
            return self._of(site, [m for m in rest if m in self.watched.names], rest)
        parts = [
            part
            for matrix in self._of(site, attention, inside)
            for part in self._split(site, matrix)
        ]
        return parts if site.kind == "attention" else self._of_scores(site, parts)

    def _of(
        self, site: Site, linear: Sequence[nn.Module], among: Iterable[nn.Module]
    ) -> list[Matrix]:
        """The whole matrices of linear modules.

        Args:
            site: for errors.
            linear: whose.
            among: modules that, tables apart, must hold no other matrices, as experts do.

        Raises:
            AnamorphError: if there are others, or a module does not see every token once.
        """
        others = {module for module in among if not isinstance(module, nn.Embedding)} - {*linear}
        if any(p.dim() > 1 for module in others for p in module.parameters(recurse=False)):
            raise _unknown(site, "not all matrices there are of linear modules, as with experts")
        if not linear:
            raise _unknown(site, "no linear module makes what is there")
        for module in linear:
            once = self.watched.times[module] == 1
            if not once or self.watched.given[module].flatten(0, -2).shape[0] != self.tokens:
                raise _unknown(
                    site,
                    f"{self.watched.names[module]} does not see every token once, as experts and "
                    "parts that are not used do not",
                )
        return self.watched.matrices(linear)

    def _ends(self, module: nn.Module) -> bool:
        """Whether it is given what all heads give, side by side."""
        x, heads = self.watched.given.get(module), self.has["heads"]
        return x is not None and x.numel() == heads.numel() and torch.equal(x.view_as(heads), heads)

    @property
    def _heads(self) -> Heads:
        assert self.block.heads is not None  # or `at` has refused
        return self.block.heads

    def _split(self, site: Site, matrix: Matrix) -> list[Matrix]:
        """The matrix itself, or those of queries, keys and values that are in it."""
        dims, (heads, key_heads) = self._heads.dims, self._heads.layout
        shared = heads // key_heads
        each = (shared * dims["query"], dims["key"], dims["value"])  # of one head of keys
        out = self.watched.gave[matrix.module]
        if out.shape[-1] != key_heads * sum(each) or self._ends(matrix.module):
            return [matrix]
        columns = torch.arange(out.shape[-1])
        together = torch.split(columns, [key_heads * size for size in each])
        by_head = torch.split(columns.view(key_heads, -1), list(each), dim=1)
        for rows in (together, [some.flatten() for some in by_head]):
            if same_up_to_rounding(self._as_heads(out[..., rows[2]], "value"), self.has["value"]):
                return [
                    replace(matrix, name=f"{matrix.name}[{kind}]", rows=some)
                    for kind, some in zip(("query", "key", "value"), rows, strict=True)
                ]
        raise _unknown(site, f"it is not known which rows of {matrix.name} make which heads")

    def _as_heads(self, x: Tensor, kind: str) -> Tensor:
        """[batch, position, heads · dim] as [batch, head, position, dim]."""
        return x.unflatten(-1, (-1, self._heads.dims[kind])).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]

    def _of_scores(self, site: Site, parts: Sequence[Matrix]) -> list[Matrix]:
        """W_Q and W_K of a head, if nothing stands between them and the scores.

        Raises:
            AnamorphError: if something does.
        """
        assert site.head is not None
        found = []
        for kind, head in (("query", site.head), ("key", self._heads.layout.reads(site.head))):
            has, dim = self.has[kind], self._heads.dims[kind]
            made = {part: self._as_heads(x, kind) for part, x in self._outputs(parts, has)}
            part = next((p for p, x in made.items() if _proportional(x, has)), None)
            if part is None:
                turned = any(_proportional(x[:, :, :1], has[:, :, :1]) for x in made.values())
                between = (
                    "rotary positions turn queries and keys before they meet"
                    if turned
                    else "norms, or something else, stand between the matrices and the scores"
                )
                raise _unknown(site, f"{between}, so scores are not of one matrix W_Q W_Kᵀ")
            own = torch.arange(part.outputs) if part.rows is None else part.rows
            own = own[head * dim : (head + 1) * dim]
            found.append(replace(part, name=f"{part.name}[{head}]", rows=own))
        return found

    def _outputs(self, parts: Sequence[Matrix], has: Tensor) -> list[tuple[Matrix, Tensor]]:
        """What matrices give, [batch, position, out], of those with as many outputs as heads."""
        made = [(p, self.watched.gave[p.module]) for p in parts if not self._ends(p.module)]
        made = [(p, x if p.rows is None else x[..., p.rows]) for p, x in made]
        return [(p, x) for p, x in made if x.shape[-1] == has.shape[1] * has.shape[3]]


@torch.inference_mode()
def find_matrices(
    model: Model, root: nn.Module, blocks: Sequence[Block], tokens: Tensor
) -> list[BlockMatrices]:
    """The matrices of every block.

    Args:
        model: with these blocks.
        root: the module of transformers.
        blocks: the model's.
        tokens: [batch, position] on its device.
    """
    paths = {module: name for name, module in root.named_modules()}
    watched = Watched({m: paths[m] for block in blocks for _, m in named_linear(block.module)})
    record = [LayerKind(layer, kind) for layer in range(len(blocks)) for kind in OF_HEADS]
    handles = [module.register_forward_hook(watched) for module in watched.names]
    try:
        with model.session():
            recorded = model.run(Batch.whole(tokens), record=record).recorded
    finally:
        for handle in handles:
            handle.remove()
    return [
        BlockMatrices(block, watched, _has(recorded, layer), tokens.numel())
        for layer, block in enumerate(blocks)
    ]


def _has(recorded: Recorded, layer: int) -> dict[str, Tensor]:
    """What was recorded of a layer, by kind."""
    return {key.kind: x[0] for key, x in recorded.items() if key.layer == layer}


def _linear(module: nn.Module) -> list[nn.Module]:
    return [inner for _, inner in named_linear(module)]


def _proportional(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor is a number times the other, up to rounding."""
    a, b = in_float64(a), in_float64(b)
    return same_up_to_rounding(a, b * ((a * b).sum() / (b * b).sum()))


def _unknown(site: Site, why: str) -> AnamorphError:
    return AnamorphError(f"No matrices behind {site} can be changed: {why}.")
