"""TransformerLens 3.9: `HookedTransformer`, its weights as Hugging Face has them, nothing folded.

Its attention is its own, with the pattern written out. The expert path caches each block's input
once a batch and starts at the edited layer.
"""

from pathlib import Path

from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from work import Cell, Sweep, load_model

PACKAGE = "transformer-lens"


class EveryForward(Sweep):
    attention = "own, explicit"

    def __init__(self, weights: Path, tokens: Tensor, projectors: Tensor) -> None:
        super().__init__(weights, tokens, projectors)
        original = load_model(weights)
        config = original.config
        self.model = HookedTransformer(
            HookedTransformerConfig(
                n_layers=config.n_layer,
                n_heads=config.n_head,
                d_model=config.n_embd,
                d_head=config.n_embd // config.n_head,
                d_mlp=4 * config.n_embd,
                d_vocab=config.vocab_size,
                n_ctx=config.n_positions,
                act_fn="gelu_new",
                normalization_type="LN",
                eps=config.layer_norm_epsilon,
                default_prepend_bos=False,
                device="cpu",
            )
        )
        self.model.load_and_process_state_dict(
            convert_gpt2_weights(original, self.model.cfg),
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
            refactor_factored_attn_matrices=False,
        )
        self.model.eval()

    def unedited(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        return self.model(inputs)

    def edited(self, cell: Cell) -> Tensor:
        return self.model.run_with_hooks(self.inputs, fwd_hooks=self.hooks(cell))

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
            inputs, names_filter=lambda name: name.endswith("hook_resid_pre")
        )
        return logits

    def edited(self, cell: Cell) -> Tensor:
        return self.model.run_with_hooks(
            self.cache["resid_pre", cell.layer],
            start_at_layer=cell.layer,
            fwd_hooks=self.hooks(cell),
        )


VARIANTS = {"every forward": EveryForward, "prefix": Prefix}
