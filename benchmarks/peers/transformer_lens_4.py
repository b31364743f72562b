"""TransformerLens 4.3: `TransformerBridge` around Hugging Face's model.

`start_at_layer` runs the blocks before that layer all the same and then swaps their output, so the
expert path is raced to show that it is none.
"""

from pathlib import Path

from tokenizers import Tokenizer, models
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast
from work import Cell, Sweep, load_model

PACKAGE = "transformer-lens"


class EveryForward(Sweep):
    attention = "own, explicit"

    def __init__(self, weights: Path, tokens: Tensor, projectors: Tensor) -> None:
        super().__init__(weights, tokens, projectors)
        original = load_model(weights)
        folder = weights.parent / "tokenizer"
        save_tokenizer(folder)
        self.model = TransformerBridge.boot_transformers(
            str(folder), hf_model=original, device="cpu"
        )
        self.model.eval()

    def unedited(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        return self.model(inputs, use_cache=False)

    def edited(self, cell: Cell) -> Tensor:
        return self.model.run_with_hooks(self.inputs, fwd_hooks=self.hooks(cell), use_cache=False)

    def hooks(self, cell: Cell) -> list:
        query, key = self.projectors[cell.layer, cell.head, cell.rank]

        def edit(projector: Tensor):
            def hook(x: Tensor, hook: object) -> Tensor:  # [sequence, position, head, dim]
                x[:, :, cell.head] = x[:, :, cell.head] @ projector
                return x

            return hook

        name = f"blocks.{cell.layer}.attn.hook_"
        return [(f"{name}q", edit(query)), (f"{name}k", edit(key))]


class Prefix(EveryForward):
    def unedited(self, inputs: Tensor) -> Tensor:
        logits, self.cache = self.model.run_with_cache(
            inputs, names_filter=lambda name: name.endswith("hook_in"), use_cache=False
        )
        return logits

    def edited(self, cell: Cell) -> Tensor:
        return self.model.run_with_hooks(
            self.cache[f"blocks.{cell.layer}.hook_in"],
            start_at_layer=cell.layer,
            fwd_hooks=self.hooks(cell),
            use_cache=False,
        )


def save_tokenizer(folder: Path) -> None:
    """The bridge looks on the hub for a tokenizer unless it finds one; nothing here is text."""
    words = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    ).save_pretrained(folder)


VARIANTS = {"every forward": EveryForward, "start_at_layer": Prefix}
