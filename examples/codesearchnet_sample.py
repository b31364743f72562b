"""A small corpus in the exact format of CodeSearchNet's files, to try `anamorph run code` on.

    python examples/codesearchnet_sample.py csn

Real functions, of the packages that the recipe `demo` fetches (pip, npm, apt), written as
`csn/LANGUAGE/final/jsonl/PARTITION/LANGUAGE_PARTITION_0.jsonl.gz`, a function a line, with the
fields of Husain et al. 2019 (arXiv 1909.09436), whose own files lie in folders of the same shape.
"""

import argparse
import gzip
import json
from pathlib import Path

import polars as pl

from anamorph.corpora import cache_folder, from_recipe

LANGUAGES = ("java", "python", "ruby")
MOST = 1500  # functions a language and partition
COPIED = ("repo", "path", "func_name", "original_string", "language", "code", "code_tokens")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder", type=Path)
    folder = arguments.parse_args().folder
    corpus = from_recipe("demo", LANGUAGES, cache_folder())
    for language, functions in corpus.functions.items():
        mixed = functions.sample(fraction=1, shuffle=True, seed=0)
        for partition in ("train", "test"):
            place = folder / language / "final" / "jsonl" / partition
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{language}_{partition}_0.jsonl.gz"
            some = mixed.filter(pl.col("partition") == partition).head(MOST)
            with gzip.open(path, "wt", encoding="utf-8") as file:
                for row in some.iter_rows(named=True):
                    line = {name: row[name] for name in COPIED} | {
                        "docstring": row["docstring"],
                        "docstring_tokens": row["docstring"].split(),
                        "sha": "",
                        "url": row["url"],
                        "partition": partition,
                    }
                    file.write(json.dumps(line) + "\n")
            print(f"{path}: {len(some):,} functions")


if __name__ == "__main__":
    main()
