"""Cross-layer transcoders, whatever files they come from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats.coder import Encoder, SparseCoder


@dataclass(frozen=True)
class CrossLayer:
    """Features of each layer write to the MLP of their own layer and of all behind it.

    Attributes:
        encoders: of each layer.
        decoders: of each layer [features, layers from this one on, width].
        biases: of each layer [width] what is added to what is written.
        skips: of each layer [width, width] what is added of what it reads, or None.

    Raises:
        AnamorphError: if shapes do not fit, or a number is a NaN or infinity.
    """

    encoders: tuple[Encoder, ...]
    decoders: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    skips: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for layer, decoder in enumerate(self.decoders):
            layers = len(self.encoders) - layer
            if decoder.shape[1:] != (layers, self.written):
                raise AnamorphError(
                    f"The decoder of layer {layer} is {list(decoder.shape)}; with "
                    f"{len(self.encoders)} layers of width {self.written} it must be "
                    f"[features, {layers}, {self.written}]."
                )
            if not decoder.isfinite().all():
                raise AnamorphError(
                    f"The decoder of layer {layer} holds a NaN or infinity; the file is damaged."
                )
            skip = None if self.skips is None else self.skips[layer]
            coder = SparseCoder(self.encoders[layer], decoder[:, 0], self.biases[layer], skip)
            if coder.read != self.read:
                raise AnamorphError(
                    f"Layer {layer} reads {coder.read} numbers, and layer 0 {self.read}; they must "
                    "be as many."
                )

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.encoders)

    @property
    def read(self) -> int:
        """The width of what is read."""
        return self.encoders[0].weight.shape[0]

    @property
    def written(self) -> int:
        """The width of what is written."""
        return self.biases[0].shape[0]

    @property
    def features(self) -> int:
        """The most features that a layer has."""
        return max(len(encoder.bias) for encoder in self.encoders)

    def encode(self, *read: Tensor) -> Tensor:
        """The features [..., features] of the last of the layers that are read."""
        return self.encoders[len(read) - 1](read[-1])

    def __call__(self, *read: Tensor) -> Tensor:
        """What is written in one layer [..., width].

        Args:
            read: what is read in each layer from 0 up to this one [..., width].
        """
        layer = len(read) - 1
        written = self.biases[layer]
        for source, x in enumerate(read):
            written = written + self.encoders[source](x) @ self.decoders[source][:, layer - source]
        return written if self.skips is None else written + read[layer] @ self.skips[layer]

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> "CrossLayer":
        """The same with its numbers in another dtype, on another device."""
        skips = self.skips
        return replace(
            self,
            encoders=tuple(encoder.to(dtype, device) for encoder in self.encoders),
            decoders=tuple(decoder.to(device, dtype) for decoder in self.decoders),
            biases=tuple(bias.to(device, dtype) for bias in self.biases),
            skips=None if skips is None else tuple(skip.to(device, dtype) for skip in skips),
        )
