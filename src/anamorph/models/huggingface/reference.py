"""What a Hugging Face model gives by itself, to compare anamorph's own runs with."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, State
from anamorph.models.wrapped import same_logits, same_up_to_rounding, still

LENGTH, SHORT = 8, 5  # tokens of the sequences that are tried
CONTEXTS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "max_target_positions",
)
COPIED = 2**16  # numbers of a tensor that is compared by value


def require_language_model(model: nn.Module) -> None:
    """Refuse a model of which it shows without running it that it cannot be audited.

    Raises:
        AnamorphError: in one sentence, with what to do.
    """
    name = type(model).__name__
    for attribute in ("_orig_mod", "module"):
        inside = getattr(model, attribute, None)
        if isinstance(inside, nn.Module) and not hasattr(type(model), "from_pretrained"):
            raise AnamorphError(
                f"{name} is a wrapper around a {type(inside).__name__}, which it compiles or "
                f"spreads over devices; give the model inside, as model.{attribute}."
            )
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or not hasattr(model, "get_output_embeddings"):
        raise AnamorphError(
            f"{name} is not a model of transformers: it has no configuration. am.HookedModel "
            "takes any module."
        )
    main = getattr(model, "main_input_name", "input_ids")
    if main != "input_ids" and "input_ids" not in inspect.signature(model.forward).parameters:
        raise AnamorphError(
            f"{name} takes {main}, not token ids; anamorph audits language models that need "
            "nothing but those."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise AnamorphError(
            f"{name} has an encoder and a decoder; anamorph audits models with one stack of "
            "blocks, from tokens to logits. am.HookedModel takes any module."
        )
    if any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()):
        raise AnamorphError(
            f"{name} was compiled in place, with its compile(), so its parts cannot be read; load "
            "it again, and do not compile it."
        )
    places = {str(x.device) for x in model.parameters()}
    if "meta" in places:
        empty = [key for key, x in model.named_parameters() if x.device.type == "meta"]
        raise AnamorphError(
            f"{name} has parameters without values, on the meta device: {', '.join(empty[:3])}"
            f"{f' and {len(empty) - 3} more' if len(empty) > 3 else ''}; load its weights."
        )
    if len(places) > 1 and getattr(model, "hf_device_map", None) is None:
        raise AnamorphError(
            f"{name} lies on several devices ({', '.join(sorted(places))}), and nothing moves what "
            "passes between them; load it with device_map, or put it on one: model.to('cpu')."
        )


@dataclass(frozen=True)
class Reference:
    """A model's own logits of a few tokens.

    Attributes:
        tokens: [2, position] of two sequences.
        plain: [2, position, vocabulary] of both.
        short: [1, fewer positions, vocabulary] of the start of the second, alone.
        causal: whether no position sees those behind it.
        pads: whether padding that a mask marks changes nothing for the real tokens.
        parallel: whether two threads may run it: nothing was seen to stay of a run in the model.
    """

    tokens: Tensor
    plain: Tensor
    short: Tensor
    causal: bool
    pads: bool
    parallel: bool

    @classmethod
    def of(cls, model: nn.Module, context: int | None) -> "Reference":
        """Run a model as its owner would, in inference mode and without dropout.

        Raises:
            AnamorphError: if it does not run on tokens, or predicts none.
        """
        length = min(LENGTH, context or LENGTH)
        tokens = _tokens(model, length)
        cut = min(SHORT, length - 1)
        mask = torch.ones_like(tokens)
        mask[1, cut:] = 0
        back = still(model)
        before = _kept(model)
        try:
            plain = own_logits(model, tokens)
            short = own_logits(model, tokens[1:, :cut])
            again = own_logits(model, tokens)
            shorter = own_logits(model, tokens[:, :2])
            padded = own_logits(model, tokens, mask) if accepts(model, "attention_mask") else None
            parallel = before == _kept(model) and not rotary_limits(model)
        finally:
            back()
        if plain.isnan().any():
            raise AnamorphError(f"{type(model).__name__} gives NaN, so there is nothing to audit.")
        if not same_up_to_rounding(again, plain):
            raise AnamorphError(
                f"{type(model).__name__} gives other logits in a second run on the same tokens: it "
                "keeps something of the first, or is random. Numbers of it would mean nothing."
            )
        causal = same_logits(plain[1:, :cut], short)
        causal = causal and same_logits(plain[:, :2], shorter)
        pads = padded is not None and same_logits(padded[1:, :cut], short)
        return cls(tokens, plain, short, causal, pads, parallel)

    def cases(self, state: State) -> list[tuple[str, Batch | State, Tensor]]:
        """What is compared: in words, a batch, and the logits [real token, vocabulary] of it.

        Args:
            state: what comes out of the last block for the tokens.
        """
        one = Batch.whole(self.tokens[1:, : self.short.shape[1]])
        cases: list[tuple[str, Batch | State, Tensor]] = [
            ("a batch", state, self.plain.flatten(0, 1)),
            ("one sequence", one, self.short[0]),
        ]
        if self.pads and not self.causal:  # a causal model is not told of padding behind a sequence
            cases.append(("a padded batch", *self.padded("right")))
        return cases

    def padded(self, side: Literal["left", "right"]) -> tuple[Batch, Tensor]:
        """A batch with padding, and the logits [real token, vocabulary] of it."""
        batch, cut = Batch.whole(self.tokens.clone()), self.short.shape[1]
        batch.mask[1, cut:] = False
        if side == "left":
            for rows in batch.tokens[1], batch.mask[1]:
                rows.copy_(rows.roll(len(rows) - cut))
        return batch, torch.cat([self.plain[0], self.short[0]])


def own_logits(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """[batch, position, vocabulary] what a model gives for [batch, position] tokens.

    Raises:
        AnamorphError: if it does not run on them, or gives something else.
    """
    name = type(model).__name__
    masked = {} if mask is None else {"attention_mask": mask}
    try:
        out = model(**inputs_of(model, tokens), **masked)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise AnamorphError(
            f"{name} does not run on a few tokens ({type(error).__name__}: {reason}); anamorph "
            "audits language models that need nothing but token ids."
        ) from error
    return logits_of(model, out, tokens)


def logits_of(model: nn.Module, out: Any, tokens: Tensor | None) -> Tensor:
    """[batch, position, vocabulary] the logits in what a model gave.

    Raises:
        AnamorphError: if there are none, or they do not fit [batch, position] tokens, if given.
    """
    name = type(model).__name__
    logits = getattr(out, "logits", out[0] if isinstance(out, tuple) and out else None)
    known: Any = model
    vocabulary = getattr(known.config.get_text_config(), "vocab_size", None)
    head = known.get_output_embeddings() is not None
    if logits is None and head:
        raise AnamorphError(
            f"{name} gives no logits for token ids alone; load the model with AutoModelForCausalLM "
            "or AutoModelForMaskedLM."
        )
    if logits is None or not (head or logits.shape[-1:] == (vocabulary,)):
        raise AnamorphError(
            f"{name} has no language-model head, so it predicts no tokens; load it with "
            "AutoModelForCausalLM or AutoModelForMaskedLM."
        )
    if tokens is not None and (logits.dim() != 3 or logits.shape[:2] != tokens.shape):
        raise AnamorphError(
            f"{name} gives {list(logits.shape)} for tokens {list(tokens.shape)}; expected logits "
            "[batch, position, vocabulary]."
        )
    return logits  # type: ignore[no-any-return]


def accepts(model: nn.Module, name: str) -> bool:
    """Whether a model's forward takes an argument of this name."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(x.kind is x.VAR_KEYWORD for x in parameters.values())


def inputs_of(model: nn.Module, tokens: Tensor) -> dict[str, Any]:
    """The arguments with which a model runs on tokens, keeping nothing for the next ones."""
    return {"input_ids": tokens} | ({"use_cache": False} if accepts(model, "use_cache") else {})


def context_of(model: nn.Module) -> int | None:
    """The longest sequence, in tokens, if a model's configuration names one.

    Some rotary embeddings change as soon as a sequence of the batch is longer than a limit; then it
    is that limit: beyond it, what a sequence gives would depend on those beside it.
    """
    known: Any = model
    config = known.config.get_text_config()
    named = [getattr(config, name, None) for name in CONTEXTS]
    limits = [x for x in (*named, *rotary_limits(model)) if isinstance(x, int) and x > 0]
    return min(limits, default=None)


def rotary_limits(model: nn.Module) -> list[int]:
    """Lengths beyond which rotary embeddings depend on the longest sequence of a batch.

    Such embeddings also keep what they computed for one batch in a buffer, for the next one.
    """
    limits = []
    for module in model.modules():
        rope: Any = getattr(module, "rope_type", None)
        kinds = rope.values() if isinstance(rope, dict) else [rope]
        if "longrope" in kinds:
            config: Any = getattr(module, "config", None)
            limits += _original_lengths(getattr(config, "rope_parameters", None))
        if "dynamic" in kinds:
            limits.append(int(getattr(module, "original_max_seq_len", 1)))
    return limits


def _original_lengths(parameters: Any) -> list[int]:
    """The lengths that a model was first trained with, in dictionaries within each other."""
    if not isinstance(parameters, dict):
        return []
    here = parameters.get("original_max_position_embeddings")
    inside = [length for value in parameters.values() for length in _original_lengths(value)]
    return inside + ([here] if isinstance(here, int) else [])


def _tokens(model: nn.Module, length: int) -> Tensor:
    """[2, length] ordinary tokens that a model knows, from the middle of its vocabulary.

    At its ends lie tokens that training never saw, at which a model may magnify rounding.
    """
    known: Any = model
    config = known.config.get_text_config()
    vocabulary = getattr(config, "vocab_size", None)
    if not isinstance(vocabulary, int):
        vocabulary = known.get_input_embeddings().weight.shape[0]
    special = {x for key, x in vars(config).items() if key.endswith("token_id")}
    start = max(0, vocabulary // 2 - 100)
    ordinary = [x for x in range(start, min(vocabulary, start + 200)) if x not in special]
    device = next((x.device for x in model.parameters()), torch.device("cpu"))
    some = torch.tensor(ordinary, device=device)
    return some[(torch.arange(2 * length, device=device).view(2, length) * 7 + 3) % len(some)]


def _kept(model: nn.Module) -> dict[str, Any]:
    """What the modules of a model keep besides weights: numbers, or how many or which object."""
    kept: dict[str, Any] = {}
    for path, module in model.named_modules():
        values = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        for name, value in (values | dict(module.named_buffers(recurse=False))).items():
            if torch.is_tensor(value):
                value = value.tolist() if value.numel() <= COPIED else id(value)
            elif isinstance(value, (dict, list, set)):
                value = len(value)
            elif not isinstance(value, (int, float, str, type(None))):
                continue
            kept[f"{path}.{name}"] = value
    return kept


def numeric(configuration: Any) -> Any:
    """A configuration without versions, places and implementations, which decide rounding alone."""
    if isinstance(configuration, dict):
        return {
            str(key): numeric(value)
            for key, value in configuration.items()
            if key != "transformers_version" and not str(key).startswith("_")
        }
    return configuration
