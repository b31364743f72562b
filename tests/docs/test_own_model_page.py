"""The commands and the Python of docs/audit_your_model.md, on a tiny model and made-up texts."""

import json
import random
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from anamorph.cli import main
from anamorph.report.opened import load_run

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.docs

PAGE = (Path(__file__).parents[2] / "docs/audit_your_model.md").read_text("utf-8")
WORDS = [f"word{number}" for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `my-model` and three files of texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["<s>", "<unk>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    draw = random.Random(0)
    for name, words in (("train", WORDS[:30]), ("iid", WORDS[:30]), ("other", WORDS)):
        lines = [json.dumps({"text": " ".join(draw.choices(words, k=12))}) for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("quick_report")
def test_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = 0
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S):
        words = shlex.split(block.replace("\\\n", " "))
        if words[0] != "anamorph":
            continue
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, (words, capsys.readouterr().err)
        done += 1
    assert done == 5
    heads = load_run(folder / "runs/heads").gaps.filter(metric="same_prediction", seed=0)
    assert len(heads) == 2 * 4  # two ranks of four heads, on one split
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(block, "audit_your_model.md", "exec"), {"__name__": "page"})
    mine = load_run(folder / "runs/mine").gaps.filter(metric="same_prediction", seed=0)
    rank_8 = heads.filter(size=8)
    assert sorted(mine["gap"]) == pytest.approx(sorted(rank_8["gap"]))  # the same in both ways
