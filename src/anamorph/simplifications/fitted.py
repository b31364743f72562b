"""Proxies with fitted simplifications, and the one file that keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.models.weights import read_weights, write_weights
from anamorph.simplifications.base import Simplification, Simplified, parse_simplification
from anamorph.simplifications.spec import parse


@dataclass(frozen=True)
class FittedProxy:
    """A proxy whose simplifications have learnt what they stand for.

    Attributes:
        proxy: the specification.
        by_site: the fitted simplification at each site; joint sites share one.
        first_layer: the first layer that is edited; the number of layers for the identity.
    """

    proxy: Simplified
    by_site: Mapping[Site, Simplification]
    first_layer: int


class FittedProxies(Mapping[Simplified, FittedProxy]):
    """Fitted proxies by their specification, in the order in which they were given.

    Args:
        placed: for each proxy the fitted simplification at each of its sites.
        layers: the number of layers of the model.
        origin: what they were fitted to, in digests.
    """

    def __init__(
        self,
        placed: Mapping[Simplified, Mapping[Site, Simplification]],
        layers: int,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        self.layers = layers
        self.origin = dict(origin or {})
        self._fitted = {
            proxy: FittedProxy(proxy, by_site, min((s.layer for s in by_site), default=layers))
            for proxy, by_site in placed.items()
        }

    def __getitem__(self, proxy: Simplified) -> FittedProxy:
        return self._fitted[proxy]

    def __iter__(self) -> Iterator[Simplified]:
        return iter(self._fitted)

    def __len__(self) -> int:
        return len(self._fitted)

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file, a tensor under `proxy text|site|attribute`.

        Raises:
            AnamorphError: if the file cannot be written.
        """
        # Copies, because safetensors refuses tensors that share memory, as those of joint sites do.
        tensors = {
            f"{proxy}|{site}|{name}": value.clone()
            for proxy, fitted in self.items()
            for site, simplification in fitted.by_site.items()
            for name, value in simplification.state_dict().items()
        }
        placed = {
            str(proxy): {str(site): str(s) for site, s in fitted.by_site.items()}
            for proxy, fitted in self.items()
        }
        metadata = {"layers": self.layers, "placed": placed, "origin": self.origin}
        write_weights(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path | str) -> FittedProxies:
        """Read what `save` wrote.

        Raises:
            AnamorphError: if the file cannot be read, or was not written by `save`.
        """
        tensors, metadata = read_weights(path)
        if not {"layers", "placed"} <= metadata.keys():
            raise AnamorphError(f"{path} holds no fitted proxies; give a file made by save().")
        states = _by_place(tensors.items())
        placed = {
            _simplified(text): {
                _read_site(site): parse_simplification(spec).load_state(
                    states.get(f"{text}|{site}", {})
                )
                for site, spec in specs.items()
            }
            for text, specs in metadata["placed"].items()
        }
        return cls(placed, metadata["layers"], metadata.get("origin"))


def _simplified(text: str) -> Simplified:
    (proxy,) = parse(text)
    assert isinstance(proxy, Simplified)  # no other kind is fitted
    return proxy


def _by_place(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors:
        place, name = key.rsplit("|", 1)
        states.setdefault(place, {})[name] = value
    return states


def _read_site(text: str) -> Site:
    layer, *head, kind = text.split(".")
    return Site(int(layer), int(head[0]) if head else None, kind)
