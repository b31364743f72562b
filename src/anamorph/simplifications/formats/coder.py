"""Sparse coders: autoencoders and transcoders, whatever file they come from.

Published coders differ in names, in orientation and in small print. Reading brings them all to the
form below, in which nothing is left to a convention:

    features = act((norm(x) - centre) @ W + b)
    output = denorm(features @ D + c) + x @ S

A *gated* coder becomes one with thresholds: a gate that shares its weights with the magnitudes,
`x @ W + b_gate > 0` beside `x @ W * exp(r) + b_mag`, is open where the magnitude lies above
`b_mag - b_gate * exp(r)` (Rajamanoharan et al. 2024, arXiv 2404.16014, appendix on weight tying).
One that picks its features by activation times decoder norm becomes one whose decoder has norm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from anamorph.errors import AnamorphError


class Norm(StrEnum):
    """What is done to each point before it is encoded, and undone to what is decoded.

    As SAELens does it, with the standard deviation over `n - 1` and `1e-5` added to it.
    """

    NONE = "none"
    LENGTH = "constant_norm_rescale"  # scaled to the length √width
    LAYER = "layer_norm"  # less its mean, by its standard deviation


EPSILON = 1e-5


@dataclass(frozen=True)
class Encoder:
    """Makes features from what is read.

    Attributes:
        weight: [read, features].
        bias: [features].
        centre: [read] what is subtracted from a point first, or None.
        rectified: whether a feature below zero is zero.
        threshold: [features] a feature that is not above is zero; None for no threshold.
        k: so many of the largest features stay, the others are zero; None for all.
        groups: the features are cut into so many groups of the same size, one behind the other, and
            of each the largest stays; None for no groups.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor | None = None
    rectified: bool = True
    threshold: Tensor | None = None
    k: int | None = None
    groups: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The features [..., features] of `x` [..., read]; a NaN in a point stays a NaN."""
        if self.centre is not None:
            x = x - self.centre
        before = x @ self.weight + self.bias
        features = before.clamp(min=0) if self.rectified else before
        if self.threshold is not None:
            features = features.masked_fill(before <= self.threshold, 0)
        if self.k is not None and self.k < before.shape[-1]:
            features = _only(features, before.topk(self.k, dim=-1, sorted=False).indices)
        if self.groups is not None:
            size = before.shape[-1] // self.groups
            largest = before.reshape(*before.shape[:-1], self.groups, size).argmax(dim=-1)
            first = torch.arange(0, before.shape[-1], size, device=before.device)
            features = _only(features, first + largest)
        return features

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Encoder:
        """The same with its numbers in another dtype, on another device."""
        centre, threshold = (
            None if x is None else x.to(device, dtype) for x in (self.centre, self.threshold)
        )
        return replace(
            self,
            weight=self.weight.to(device, dtype),
            bias=self.bias.to(device, dtype),
            centre=centre,
            threshold=threshold,
        )


def _only(features: Tensor, kept: Tensor) -> Tensor:
    return torch.zeros_like(features).scatter(-1, kept, features.gather(-1, kept))


@dataclass(frozen=True)
class SparseCoder:
    """An encoder and a decoder: what is read is written again, or something else is.

    Attributes:
        encoder: see `Encoder`.
        weight: [features, written] of the decoder.
        bias: [written].
        skip: [read, written] what is added of a point itself, or None.
        norm: see `Norm`.
        denorm: whether it is undone behind the decoder; an autoencoder's is.

    Raises:
        AnamorphError: if shapes do not fit, or a number is a NaN or infinity.
    """

    encoder: Encoder
    weight: Tensor
    bias: Tensor
    skip: Tensor | None = None
    norm: Norm = Norm.NONE
    denorm: bool = False

    def __post_init__(self) -> None:
        encoder = self.encoder
        shapes = {
            "encoder weight": (encoder.weight, (self.read, self.features)),
            "encoder bias": (encoder.bias, (self.features,)),
            "centre": (encoder.centre, (self.read,)),
            "threshold": (encoder.threshold, (self.features,)),
            "decoder weight": (self.weight, (self.features, self.written)),
            "decoder bias": (self.bias, (self.written,)),
            "skip": (self.skip, (self.read, self.written)),
        }
        for name, (value, shape) in shapes.items():
            if value is not None and value.shape != shape:
                raise AnamorphError(
                    f"The {name} is {list(value.shape)}; for {self.read} numbers read, "
                    f"{self.features} features and {self.written} numbers written it must be "
                    f"{list(shape)}."
                )
            if value is not None and not value.isfinite().all():
                raise AnamorphError(f"The {name} holds a NaN or infinity; the file is damaged.")
        if encoder.k is not None and not 1 <= encoder.k <= self.features:
            raise AnamorphError(f"k is {encoder.k}; expected 1 to the {self.features} features.")
        if encoder.groups is not None and (encoder.groups < 1 or self.features % encoder.groups):
            raise AnamorphError(
                f"{self.features} features cannot be cut into {encoder.groups} groups of one size."
            )

    @property
    def read(self) -> int:
        """The width of what is read."""
        return self.encoder.weight.shape[0]

    @property
    def features(self) -> int:
        """How many features there are."""
        return self.encoder.bias.shape[0]

    @property
    def written(self) -> int:
        """The width of what is written."""
        return self.bias.shape[0]

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> SparseCoder:
        """The same with its numbers in another dtype, on another device."""
        return replace(
            self,
            encoder=self.encoder.to(dtype, device),
            weight=self.weight.to(device, dtype),
            bias=self.bias.to(device, dtype),
            skip=None if self.skip is None else self.skip.to(device, dtype),
        )

    def encode(self, x: Tensor) -> Tensor:
        """The features [..., features] of `x` [..., read]."""
        return self.encoder(self._normed(x)[0])

    def __call__(self, x: Tensor) -> Tensor:
        """What is written [..., written] where `x` [..., read] is read."""
        inner, scale, shift = self._normed(x)
        y = self.encoder(inner) @ self.weight + self.bias
        if self.denorm and scale is not None:
            y = y * scale + shift
        return y if self.skip is None else y + x @ self.skip

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | float]:
        """A point as the encoder is given it, and what undoes the norm: times, then plus."""
        if self.norm == Norm.NONE:
            return x, None, 0.0
        if self.norm == Norm.LENGTH:
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            return x / scale, scale, 0.0
        shift = x.mean(dim=-1, keepdim=True)
        scale = x.std(dim=-1, keepdim=True)
        return (x - shift) / (scale + EPSILON), scale, shift


def gated(
    weight: Tensor, gate_bias: Tensor, scale: Tensor, bias: Tensor, centre: Tensor | None
) -> Encoder:
    """The encoder of a gated autoencoder: see the head of this file.

    Args:
        weight: [read, features], shared by gates and magnitudes.
        gate_bias: [features].
        scale: [features] the logarithm of what a magnitude's weights are multiplied by.
        bias: [features] of the magnitudes.
        centre: as of the encoder.
    """
    grown = scale.exp()
    return Encoder(weight * grown, bias, centre, threshold=bias - gate_bias * grown)


def picked_by_norm(coder: SparseCoder) -> SparseCoder:
    """What picks its features by activation times the norm of their decoder.

    Args:
        coder: with the weights as they are stored.

    Returns:
        One with decoder norms of 1, which writes the same. A feature that writes nothing is never
        active.
    """
    norm = coder.weight.norm(dim=1)  # [features]
    encoder = replace(
        coder.encoder, weight=coder.encoder.weight * norm, bias=coder.encoder.bias * norm
    )
    return replace(coder, encoder=encoder, weight=coder.weight / norm.where(norm > 0, 1)[:, None])
