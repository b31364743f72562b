"""Spec strings: the text that names a proxy (`grammar.py` has the grammar).

`joint=true`, `on=SPLIT` and `keep=1` among the parameters of a stage belong to the attachment.
"""

from collections.abc import Iterable
from functools import reduce
from itertools import product
from operator import add
from typing import Any, cast

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Attachment, Simplification, Simplified
from anamorph.simplifications.estimator import OF_ATTACHMENT
from anamorph.simplifications.grammar import Scalar, Stage, read_models, read_proxy, value_text
from anamorph.simplifications.named import AnotherModel, ProxySpec
from anamorph.simplifications.registry import find_class

Spec = str | Attachment | ProxySpec
"""What may stand for proxies where they are asked for."""


def parse(text: str) -> list[ProxySpec]:
    """The proxies that a spec string names: one, or one for each combination of its lists.

    Raises:
        AnamorphError: if the text cannot be read, or names or parameters do not exist.

    Examples:
        >>> for proxy in parse("svd(rank=[1,2])@1.*.{query,key};onehot@1.*.pattern"):
        ...     print(proxy)
        svd(rank=1)@1.*.{query,key};onehot@1.*.pattern
        svd(rank=2)@1.*.{query,key};onehot@1.*.pattern
    """
    if models := read_models(text):
        return [AnotherModel(path) for path in models]
    attachments = [_attachments(text, stages, sites) for stages, sites in read_proxy(text)]
    return [Simplified(choice) for choice in product(*attachments)]


def expand(specs: Spec | Iterable[Spec]) -> list[ProxySpec]:
    """All proxies that the specs name, in order, each once.

    Raises:
        AnamorphError: as `parse`; for things that do not name a proxy; and if one text names two
            things, as results and works tell proxies by their text.
    """
    if isinstance(specs, Spec) or not isinstance(specs, Iterable):
        specs = [specs]
    found: dict[str, ProxySpec] = {}
    for spec in specs:
        if isinstance(spec, str):
            named = parse(spec)
        elif isinstance(spec, Attachment):
            named = [Simplified((spec,))]
        elif isinstance(spec, ProxySpec):
            named = [spec]
        else:
            raise AnamorphError(
                f"{spec!r} is not a proxy; expected a spec string such as "
                "'svd(rank=4)@1.*.{query,key}', a simplification attached to sites, or a model as "
                "am.AnotherModel(name, model)."
            )
        for proxy in named:
            other = found.setdefault(str(proxy), proxy)
            models = [p.model for p in (other, proxy) if isinstance(p, AnotherModel)]
            if models and models[0] is not models[-1]:
                raise AnamorphError(f"{proxy} names two models; give each a name of its own.")
            if other != proxy:
                raise AnamorphError(
                    f"{proxy} names two things, of different classes or with different values that "
                    "are written alike; give each class a name of its own."
                )
    return list(found.values())


def find_simplification(name: str) -> type[Simplification]:
    """The class of a name in the registry, or of an installed package.

    Raises:
        AnamorphError: if there is none, or if what a package offers is not a simplification.
    """
    return cast(type[Simplification], find_class(name))


def check_readable(proxies: Iterable[ProxySpec]) -> None:
    """Whether each proxy can be read again from its text, as a run that is resumed must do.

    Raises:
        AnamorphError: if one cannot.
    """
    for proxy in proxies:
        if not isinstance(proxy, Simplified):  # a model may have been given itself
            continue
        text = str(proxy)
        try:
            again = parse(text)
        except AnamorphError as error:
            raise AnamorphError(
                f"A run that holds {text} could not be resumed: {error} Name the class in an "
                "entry point (docs/extending.md), or use am.audit, which keeps nothing on disk."
            ) from error
        if again != [proxy] or _parameters(again[0]) != _parameters(proxy):
            raise AnamorphError(
                f"A run that holds {text} could not be resumed, as this text reads as "
                f"{', '.join(map(repr, again))}. Hyper-parameters must be numbers, true, false or "
                "text; and the class must be the one that its name stands for."
            )


def _parameters(proxy: ProxySpec) -> list[dict[str, object]]:
    """What text does not tell apart: None and 'None'."""
    assert isinstance(proxy, Simplified)
    return [part.get_params() for a in proxy.attachments for part in a.simplification.parts()]


def _attachments(text: str, stages: list[Stage], sites: str) -> list[Attachment]:
    """One for each combination of the values in the lists of an attachment."""
    kinds = [find_simplification(stage.name) for stage in stages]
    found = []
    for choice in product(*map(_choices, stages)):
        options: dict[str, Any] = {}
        made = []
        for kind, values in zip(kinds, choice, strict=True):
            for key, value in values.items():
                if key not in OF_ATTACHMENT:
                    continue
                said = [value_text(v) for v in (options.setdefault(key, value), value)]
                if said[0] != said[1]:  # as text: true is not 1
                    both = " and ".join(f"{key}={v}" for v in said)
                    raise AnamorphError(
                        f"The spec {text!r} says both {both} of one attachment; say it once."
                    )
            own = {key: value for key, value in values.items() if key not in OF_ATTACHMENT}
            made.append(kind.with_params(own))
        found.append(reduce(add, made).at(sites, **options))
    return found


def _choices(stage: Stage) -> list[dict[str, Scalar]]:
    """A stage's values, for each combination of its lists."""
    return [dict(zip(stage.values, some, strict=True)) for some in product(*stage.values.values())]
