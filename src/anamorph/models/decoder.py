"""A decoder-only Transformer, pre-norm, small enough to read in one sitting.

To train, `forward` runs all of it. An audit runs it block by block (see `anamorph.models.base`):
every tensor that a simplification may stand in for passes through a `Tap`, and only what is asked
for is computed: explicit attention patterns where somebody reads or replaces them, fused attention
elsewhere; after the last layer's keys and values, only the positions that are scored.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anamorph.errors import AnamorphError, require
from anamorph.machine.process import usual_tensors
from anamorph.models.base import Batch, Edits, LayerKind, Model, Ran, State
from anamorph.models.causal import causal_attention, rotated
from anamorph.models.fingerprint import CONFIGURATION, digest_of, fingerprint_of
from anamorph.models.matrices import Matrix
from anamorph.models.norms import Norm
from anamorph.models.sites import FINAL, HEAD_KINDS, LAYER_KINDS, NORM_KINDS, Site
from anamorph.models.tap import Tap, rows_at
from anamorph.models.weights import read_weights, write_weights
from anamorph.store import Address

Positions = Literal["learned", "sinusoidal", "rotary"]


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
        vocabulary: number of token ids.
        context: the longest sequence, in tokens.
        layers: blocks.
        heads: attention heads a block; must divide `width`.
        width: of the residual stream.
        mlp: hidden width of the MLPs.
        positions: `sinusoidal` or `learned` vectors added to the embedding, or `rotary` queries
            and keys (Su et al. 2021, arXiv 2104.09864).

    Raises:
        AnamorphError: if the numbers do not fit together.
    """

    vocabulary: int
    context: int
    layers: int = 2
    heads: int = 1
    width: int = 32
    mlp: int = 128
    positions: Positions = "sinusoidal"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "positions":
                require(f"Decoder: {name}", value, whole=True, above=0)
        require("Decoder: positions", self.positions, among=get_args(Positions))
        if self.width % self.heads:
            raise AnamorphError(
                f"Decoder: width must be a multiple of heads; got width={self.width}, "
                f"heads={self.heads}."
            )
        if self.positions != "learned" and self.width // self.heads % 2:
            raise AnamorphError(
                f"Decoder: {self.positions} positions need an even number of dimensions a head; "
                f"got {self.width // self.heads}."
            )


class Decoder(nn.Module, Model):
    """A decoder-only Transformer with `DecoderConfig`'s shape.

    It has sites of all kinds; see `anamorph.models.sites`.

    Examples:
        >>> model = Decoder(DecoderConfig(vocabulary=10, context=8))
        >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 10])
    """

    wave: Tensor  # [position, width] sines in the even columns, cosines in the odd ones
    turn: Tensor  # [position, dim / 2, 2] the cosine and the sine of an angle

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config, self.layers = config, config.layers
        self.vocabulary, self.context = config.vocabulary, config.context
        with usual_tensors():
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            if config.positions == "learned":
                self.position = nn.Embedding(config.context, config.width)
            elif config.positions == "sinusoidal":
                angles = _angles(config.context, config.width)
                wave = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
                self.register_buffer("wave", wave, persistent=False)
            else:
                angles = _angles(config.context, config.width // config.heads)
                turn = torch.stack((angles.cos(), angles.sin()), dim=-1)
                self.register_buffer("turn", turn, persistent=False)
            self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.width)
            self.unembedding = nn.Linear(config.width, config.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms start as the identity, biases at zero
            std = 0.02 if "embedding" in name or "position" in name else parameter.shape[1] ** -0.5
            if name.endswith(("output.weight", "down.weight")):
                std /= math.sqrt(2 * config.layers)
            nn.init.normal_(parameter, std=std)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its weights and logits."""
        return self.unembedding.weight.dtype

    def _parameter_count(self) -> int:
        return sum(x.numel() for x in self.parameters())

    def describe(self) -> dict[str, Any]:
        """Its configuration."""
        return {"class": type(self).__name__, **asdict(self.config)}

    def fingerprint(self) -> dict[str, str]:
        """A digest of its weights, layer by layer, and of its configuration."""
        return {**fingerprint_of(self), CONFIGURATION: digest_of(asdict(self.config))}

    @property
    def sites(self) -> list[Site]:
        """Every tensor that can be read and replaced."""
        c = self.config
        heads = product(HEAD_KINDS, range(c.layers), range(c.heads))
        whole = product((*LAYER_KINDS, *NORM_KINDS[:2]), range(c.layers))
        return [
            *(Site(layer, head, kind) for kind, layer, head in heads),
            *(Site(layer, None, kind) for kind, layer in whole),
            Site(c.layers - 1, None, FINAL),
        ]

    def dim(self, kind: str) -> int | None:
        """The last dimension of a site's activation; None for patterns, where it varies."""
        if kind == "pattern":
            return None
        if kind in NORM_KINDS:
            return 1
        return self.config.width if kind in LAYER_KINDS else self.config.width // self.config.heads

    def matrices(self, site: Site) -> list[Matrix]:
        """See `anamorph.models.base.Model.matrices`."""
        block = cast(_Block, self.blocks[site.layer])
        if site.kind == "pattern" and self.config.positions == "rotary":
            raise AnamorphError(
                f"No matrices behind {site} can be changed: rotary positions turn queries and keys "
                "before they meet, so scores are not of one matrix W_Q W_Kᵀ."
            )
        if site.kind == "mlp":
            parts = {"up": block.up, "down": block.down}
        elif site.kind == "attention":
            parts = {"query": block.query, "key": block.key, "value": block.value}
            parts["output"] = block.output
        elif site.kind == "pattern":
            parts = {"query": block.query, "key": block.key}
        else:
            return super().matrices(site)
        rows = None
        if site.head is not None:
            dim = self.config.width // self.config.heads
            rows = torch.arange(site.head * dim, (site.head + 1) * dim)
        return [
            Matrix(
                f"blocks.{site.layer}.{name}" + ("" if site.head is None else f"[{site.head}]"),
                module,
                block.query if name in ("key", "value") else module,
                rows,
            )
            for name, module in parts.items()
        ]

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, position] token ids to [batch, position, vocabulary] logits, nothing edited.

        This is the fast way for training: one product for a block's queries, keys and values.
        """
        residual = self._embed(tokens)
        for block in cast("list[_Block]", self.blocks):
            x = block.norm_attention(residual)
            weights = torch.cat([block.query.weight, block.key.weight, block.value.weight])
            packed = F.linear(x, weights).view(*tokens.shape, 3, self.config.heads, -1)
            turn = self.turn[: tokens.shape[1]] if self.config.positions == "rotary" else None
            residual = residual + block.output(causal_attention(packed, turn).flatten(2))
            residual = residual + block.down(F.gelu(block.up(block.norm_mlp(residual))))
        logits: Tensor = self.unembedding(self.norm(residual))
        return logits

    def start(self, batch: Batch) -> State:
        """Embed the tokens: the state before layer 0.

        Raises:
            AnamorphError: if the batch is longer than the context.
        """
        return State(self._embed(batch.tokens)[None], batch.tokens, batch.mask)

    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Collection[LayerKind | Site] = (),
        at: Tensor | None = None,
    ) -> Ran:
        """Run one block; see `anamorph.models.base.Model.layer`."""
        block = cast(_Block, self.blocks[index])
        rows = at if index == self.layers - 1 else None  # None: all positions go on
        tap = Tap(index, state, edits or {}, record, at, rows)
        residual = state.residual  # [copy, batch, position, width]
        x = _normed(block.norm_attention, residual, "norm_1", tap)
        key = tap("key", self._rotate(self._heads(block.key(x))))
        value = tap("value", self._heads(block.value(x)))
        x, residual = rows_at(x, rows), rows_at(residual, rows)
        query = tap("query", self._rotate(self._heads(block.query(x)), rows))
        recorded = "pattern" in tap.wanted
        if tap.changes("pattern") or (recorded and (rows is not None or at is None)):
            heads = tap("pattern", _attention_pattern(query, key, rows)) @ value
        else:
            heads = _fused_attention(query, key, value, rows)
            if recorded:
                tap.keep("pattern", _attention_pattern(rows_at(query, at), key, at))
        heads = tap("output", heads)  # [copy, batch, head, query, dim]
        heads = tap("heads", heads.transpose(-3, -2).flatten(-2))
        attention = tap("attention", block.output(heads))
        middle = tap("middle", residual + attention)
        mlp_input = tap("mlp_input", _normed(block.norm_mlp, middle, "norm_2", tap))
        mlp = tap("mlp", block.down(F.gelu(block.up(mlp_input))))
        residual = tap("residual", middle + mlp)
        last = index == self.layers - 1 and tap.concerns(FINAL)
        scale = tap(FINAL, _norm(self.norm).scale(residual)) if last else None
        return Ran(State(residual, state.tokens, state.mask, tap.read, scale), tap.recorded)

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all."""
        state = state.each(lambda x: rows_at(x, at))
        out = self.norm(state.residual)
        if state.scale is not None:
            out = _norm(self.norm).scaled(state.residual, out, state.scale)
        logits: Tensor = self.unembedding(out)
        return logits

    def save(self, path: Address | str) -> None:
        """Write weights and configuration to one safetensors file, atomically."""
        write_weights(path, self.state_dict(), {"decoder": asdict(self.config)})

    @classmethod
    def load(cls, path: Address | str) -> Self:
        """Read what `save` wrote.

        Raises:
            AnamorphError: if the file is missing, damaged or not a decoder's.
        """
        tensors, metadata = read_weights(path)
        if "decoder" not in metadata:
            raise AnamorphError(
                f"{path} holds no anamorph decoder (its metadata has {sorted(metadata)}); "
                "give a model.safetensors that a run wrote."
            )
        return cls.of(metadata["decoder"], tensors, str(path))

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> Self:
        """A decoder from its configuration and weights; `source` is named in errors."""
        try:
            with torch.random.fork_rng(devices=[]):  # the weights it begins with are not kept
                model = cls(DecoderConfig(**config))
            model.load_state_dict(dict(tensors))
        except (RuntimeError, TypeError) as error:
            raise AnamorphError(
                f"The weights in {source} do not fit the configuration beside them: {error}"
            ) from error
        return model

    def _embed(self, tokens: Tensor) -> Tensor:
        """[batch, position, width] the residual stream before layer 0."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise AnamorphError(
                f"A sequence of {length} tokens does not fit the model's context of "
                f"{self.config.context}; cut it or train a model with a longer context."
            )
        residual: Tensor = self.embedding(tokens)
        if self.config.positions == "learned":
            residual = residual + self.position.weight[:length]
        elif self.config.positions == "sinusoidal":
            residual = residual + self.wave[:length]
        return residual

    def _heads(self, x: Tensor) -> Tensor:
        """[copy, batch, position, width] to [copy, batch, head, position, dim]."""
        return x.view(*x.shape[:-1], self.config.heads, -1).transpose(-3, -2)

    def _rotate(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Turn pairs of dimensions of [..., head, position, dim] by the positions' angles."""
        if self.config.positions != "rotary":
            return x
        turn = self.turn[: x.shape[-2]] if at is None else self.turn[at][:, None]
        return rotated(x, turn)


class _Block(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, mlp = config.width, config.mlp
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, mlp)
        self.down = nn.Linear(mlp, width)


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module, module.eps)


def _normed(module: nn.LayerNorm, x: Tensor, kind: str, tap: Tap) -> Tensor:
    """What a norm, whose scale is a site, makes of [copy, batch, position, width]."""
    return _norm(module).through(tap, kind, x, module(x))


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, at: Tensor | None) -> Tensor:
    # Padding stands at the right, so causality alone keeps every real position away from it. Copies
    # are handed over as heads: a value that all copies share is then repeated without being copied.
    copies = max(query.shape[0], key.shape[0], value.shape[0])
    q, k, v = (
        x.expand(copies, -1, -1, -1, -1).movedim(0, 1).flatten(1, 2) for x in (query, key, value)
    )
    seen = None if at is None else ~_future(key.shape[-2], at, key.device)
    heads: Tensor = F.scaled_dot_product_attention(q, k, v, seen, is_causal=at is None)
    return heads.view(len(heads), copies, -1, *heads.shape[2:]).movedim(1, 0)


def _attention_pattern(query: Tensor, key: Tensor, at: Tensor | None) -> Tensor:
    """[copy, batch, head, query, key] probabilities; no row sees behind its own position."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    future = _future(key.shape[-2], at, key.device)
    scores += torch.zeros_like(future, dtype=scores.dtype).masked_fill_(future, -torch.inf)
    pattern: Tensor = scores.softmax(dim=-1)
    return pattern


def _future(length: int, at: Tensor | None, device: torch.device) -> Tensor:
    """[query, key], or [batch, 1 (head), query, key]: True at keys behind the query's position."""
    columns = torch.arange(length, device=device)
    rows = columns if at is None else at[:, None]
    return columns > rows[..., None]


def _angles(length: int, dim: int) -> Tensor:
    """[position, dim / 2] angles with wavelengths from 2π to 20000π (Vaswani et al. 2017)."""
    frequency = 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
    return torch.arange(length)[:, None] * frequency
