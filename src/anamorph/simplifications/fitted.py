"""Proxies with fitted simplifications, and the one file that keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from anamorph.errors import AnamorphError, told_where
from anamorph.files import file_name
from anamorph.models.sites import Site, match_sites
from anamorph.models.weights import read_weights, write_weights
from anamorph.showing import Card, Cell, Showing
from anamorph.simplifications.base import Simplification, Simplified, parse_simplification
from anamorph.simplifications.estimator import Where
from anamorph.simplifications.placing import first_layer
from anamorph.simplifications.spec import parse
from anamorph.store import Address


@dataclass(frozen=True)
class FittedProxy:
    """A proxy whose simplifications are fitted.

    Attributes:
        proxy: the specification.
        by_site: the fitted simplification at each site; sites that share a fit share the object.
        first_layer: the first layer that is read or edited; the number of layers for the identity.
    """

    proxy: Simplified
    by_site: Mapping[Site, Simplification]
    first_layer: int

    @property
    def keep(self) -> dict[Site, int]:
        """How many positions at the beginning of a sequence are left as they are, if any are."""
        return {
            site: attachment.keep
            for attachment in self.proxy.attachments
            if attachment.keep
            for site in match_sites(attachment.sites, self.by_site)
        }


class FittedProxies(Showing, dict[Simplified, FittedProxy]):
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
        super().__init__(
            (proxy, FittedProxy(proxy, by_site, first_layer(by_site, layers)))
            for proxy, by_site in placed.items()
        )
        self.layers, self.origin = layers, dict(origin or {})

    def from_origin(self, origin: Mapping[str, str]) -> FittedProxies:
        """The same, with what they were fitted to in digests."""
        return FittedProxies({p: f.by_site for p, f in self.items()}, self.layers, origin)

    def _card(self) -> Card:
        rows, fits = [], dict[int, int]()  # numbers of each fit
        for proxy, fitted in self.items():
            learnt: Counter[str] = Counter()
            for simplification in {id(s): s for s in fitted.by_site.values()}.values():
                state = simplification.state_dict() if simplification.kept else {}
                learnt.update(f"{name} {list(x.shape)}" for name, x in state.items())
                fits[id(simplification)] = sum(x.numel() for x in state.values())
            tensors = ", ".join(f"{n} × {t}" if n > 1 else t for t, n in learnt.items())
            cells = [Cell(f"{len(fitted.by_site)}"), Cell(tensors or "nothing", number=False)]
            rows.append((str(proxy), cells))
        what = f"{len(self)} fitted prox{'y' if len(self) == 1 else 'ies'}"
        kept = f"{len(fits)} fit{'' if len(fits) == 1 else 's'}, {sum(fits.values()):,} numbers"
        return Card(
            f"{what}: {kept}",
            heads=["proxy", "sites", "learnt"],
            rows=rows,
            total=what,
            notes=["By spec string; .save(path) keeps them, .export(folder, model) for others."],
        )

    def save(self, path: Address | str) -> None:
        """Write to one safetensors file: each fit once, its tensors under `number|attribute`.

        Raises:
            AnamorphError: if the file cannot be written.
        """
        every = (s for fitted in self.values() for s in fitted.by_site.values())
        fits = list({id(simplification): simplification for simplification in every}.values())
        number = {id(simplification): n for n, simplification in enumerate(fits)}
        # Copies, because safetensors refuses tensors that share memory.
        tensors = {
            f"{n}|{name}": value.clone()
            for n, simplification in enumerate(fits)
            for name, value in simplification.state_dict().items()
            if simplification.kept
        }
        placed = {
            str(proxy): {str(site): number[id(s)] for site, s in fitted.by_site.items()}
            for proxy, fitted in self.items()
        }
        metadata = {"layers": self.layers, "fits": list(map(str, fits)), "placed": placed}
        write_weights(path, tensors, {**metadata, "origin": self.origin})

    def export(self, folder: Path | str, model: str) -> list[Path]:
        """Write what other packages read: as SAELens does, or where it has no form, sparsify.

        Args:
            folder: a folder for each proxy is made in it.
            model: the name of the model.

        Returns:
            a folder for each fit and site.

        Raises:
            AnamorphError: if nothing has a form that other packages read, or as
                `Estimator.export`.
        """
        made = [
            simplification.export(Path(folder) / file_name(str(proxy)), site, model)
            for proxy, fitted in self.items()
            for site, simplification in fitted.by_site.items()
        ]
        written = [path for path in made if path is not None]
        if not written:
            raise AnamorphError(
                f"None of {', '.join(map(str, self)) or 'no proxies'} has a form that other "
                "packages read; topk_sae and topk_transcoder have."
            )
        return written

    @classmethod
    def load(cls, path: Address | str) -> FittedProxies:
        """Read what `save` wrote.

        Raises:
            AnamorphError: if the file cannot be read, or was not written by `save`.
        """
        tensors, metadata = read_weights(path)
        if not {"layers", "placed"} <= metadata.keys():
            raise AnamorphError(f"{path} holds no fitted proxies; give a file made by save().")
        if "fits" not in metadata:
            raise AnamorphError(
                f"{path} was written by an older anamorph, which stored a fit with every proxy; "
                "delete it, and the same command fits again."
            )
        states: list[dict[str, Tensor]] = [{} for _ in metadata["fits"]]
        for key, value in tensors.items():
            number, name = key.split("|", 1)
            states[int(number)][name] = value
        sites: dict[int, dict[Site, None]] = {}  # of each fit, in order and once each
        for by_site in metadata["placed"].values():
            for site, number in by_site.items():
                sites.setdefault(number, {})[_read_site(site)] = None
        fits = [
            _learnt(text, state, tuple(sites[number]))
            for number, (text, state) in enumerate(zip(metadata["fits"], states, strict=True))
        ]
        placed = {
            _simplified(text): {_read_site(site): fits[number] for site, number in by_site.items()}
            for text, by_site in metadata["placed"].items()
        }
        return cls(placed, metadata["layers"], metadata.get("origin"))


def _learnt(text: str, state: Mapping[str, Tensor], sites: tuple[Site, ...]) -> Simplification:
    """A fit as it was, or learnt again from the files that it names."""
    simplification = parse_simplification(text)
    reads = simplification.reads(sites[0])
    with told_where(simplification, ", ".join(map(str, sites))):
        placed = simplification.placed(Where(sites, reads))
        return placed.load_state(state) if placed.kept else placed.learn(None)


def _simplified(text: str) -> Simplified:
    (proxy,) = parse(text)
    assert isinstance(proxy, Simplified)  # no other kind is fitted
    return proxy


def _read_site(text: str) -> Site:
    layer, *head, kind = text.split(".")
    return Site(int(layer), int(head[0]) if head else None, kind)
