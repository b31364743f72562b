"""In the loop over stacks nothing waits for an accelerator, and nothing is copied to it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from anamorph.auditing.stacks import StackedEdit
from anamorph.models.base import Batch, LayerKind, Model
from anamorph.models.decoder import Decoder, DecoderConfig
from anamorph.models.huggingface.model import HuggingFace
from anamorph.simplifications import PCA, SVD, KMeans, OneHot
from anamorph.simplifications.methods.ablations import Mean, Resample
from anamorph.simplifications.methods.concepts import Concepts
from anamorph.simplifications.methods.topk import TopKSAE
from huggingface_models import VOCABULARY, make
from pretended import BRINGS_HOME, DEVICE, Elsewhere, Pretended, on_accelerator

WAITS = (*BRINGS_HOME, Tensor.__float__, Tensor.__index__, Tensor.nonzero, torch.nonzero)
INDEXES = (Tensor.__getitem__, Tensor.__setitem__)
pytestmark = pytest.mark.filterwarnings("ignore:.*was learnt in")


class Waiting(TorchFunctionMode):
    """Notes what would have to wait for the accelerator, or to copy something to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tree_flatten((args, kwargs))[0]
        away = any(isinstance(x, Elsewhere) for x in given)
        wanted = kwargs.get("device")
        name = getattr(function, "__name__", str(function))
        if away and function in WAITS:
            self.seen.append(name)
        if away and function in INDEXES:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            copied = [x for x in index if isinstance(x, list) or type(x) is Tensor]
            masks = [x for x in index if isinstance(x, Tensor) and x.dtype == torch.bool]
            self.seen += [f"{name} by {type(x).__name__}" for x in (*copied, *masks)]
        if function is torch.tensor and wanted is not None and torch.device(wanted) == DEVICE:
            self.seen.append(name)
        found = function(*args, **kwargs)
        if function is Tensor.to and isinstance(found, Elsewhere) != isinstance(args[0], Elsewhere):
            self.seen.append(name)
        return found


def test_what_waits_is_noticed() -> None:
    with Pretended():
        x = torch.ones(3, 4).to(DEVICE)
        for wait in (
            lambda: x.sum().item(),
            lambda: bool((x > 0).all()),
            lambda: x[:, [1, 2]],
            lambda: x[x > 0],
            lambda: x.cpu(),
            lambda: torch.ones(3).to(x),
            lambda: torch.tensor([1, 2], device=DEVICE),
        ):
            with Waiting() as waiting:
                wait()
            assert len(waiting.seen) >= 1, wait
        with Waiting() as waiting:
            assert (x @ x.T)[:, 1:].float().to(x).shape == (3, 2)
        assert waiting.seen == []


def wrapped(name: str) -> HuggingFace:
    return HuggingFace(on_accelerator(make(name)))


def decoder(_: str) -> nn.Module:
    torch.manual_seed(0)
    return on_accelerator(Decoder(DecoderConfig(VOCABULARY, 32, width=32, heads=4, mlp=64)).eval())


def stacks(model: Model) -> dict[str, dict[LayerKind, list[Any]]]:
    """Of every kind of site some proxies, each with a simplification at one site or two heads."""
    points = {dim: torch.randn(64, dim) for dim in (8, 32)}

    def fits(dim: int) -> list[Any]:
        kinds = SVD(rank=2), PCA(rank=dim), KMeans(clusters=3), Mean(), Resample(reservoir=9)
        coders = Concepts(concepts=4), TopKSAE(features=8, k=2)
        return [kind.fit(points[dim]) for kind in (*kinds, *coders)]

    kinds = {site.kind for site in model.sites if site.layer == 1}
    found: dict[str, dict[LayerKind, list[Any]]] = {}
    for kind in sorted(kinds & {"residual", "mlp", "mlp_input", "attention", "middle"}):
        found[kind] = {LayerKind(1, kind): [{None: fit} for fit in fits(32)]}
    for kind in sorted(kinds & {"query", "key", "output"}):
        found[kind] = {LayerKind(1, kind): [{0: fit} for fit in fits(8)]}
    if "query" in kinds:
        found["heads apart"] = {LayerKind(1, "query"): [{0: fit, 3: fit} for fit in fits(8)]}
        found["pattern"] = {LayerKind(1, "pattern"): [{1: OneHot()}, {3: OneHot()}]}
    return found


@pytest.mark.parametrize(
    ("make_model", "name"),
    [
        *((wrapped, name) for name in ("gpt2", "llama", "gemma3", "mistral", "bert", "phi", "opt")),
        (decoder, "decoder"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@torch.inference_mode()
def test_no_stack_but_the_first_of_a_batch_waits(make_model: Any, name: str) -> None:
    with Pretended():
        model = make_model(name)
        tokens = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
        mask = torch.arange(11) < torch.tensor([11, 8, 5])[:, None]
        batch = Batch(tokens, mask).to(DEVICE)
        at = torch.tensor([[3, 4], [2, 3], [1, 2]]).to(DEVICE)
        patterns = [site for site in model.sites if site.kind == "pattern"]
        with model.session():
            before = model.run(batch, stop=1).state
            for kind, placed in stacks(model).items():

                def stack(placed: Any = placed) -> None:
                    edits = {key: StackedEdit(key, fits) for key, fits in placed.items()}
                    ran = model.run(before, edits, patterns, at, first=1)
                    model.logits(ran.state)

                stack()
                with Waiting() as waiting:
                    stack()
                assert waiting.seen == [], kind
