"""The pictures of docs/read_a_report.md, made anew: `python docs/pictures.py [FOLDER]`.

It takes some minutes. Runs are made in FOLDER (runs/pictures): Dyck as of the preset demo with
fewer views, and a small model with four heads. What is there already is taken.
"""

import json
import sys
from pathlib import Path

import vl_convert

import anamorph as am
from anamorph.analysis.findings import read
from anamorph.report.charts.sections import draw
from anamorph.report.figure import VEGA_LITE, Figure
from anamorph.report.theme import CONFIG, in_light

PICTURES = Path(__file__).parent / "pictures"
LARGEST = 90_000  # bytes of a picture
VIEWS = (
    "svd(rank=[2,4,8,16,32], joint=true)@1.*.{query,key}",
    "onehot@1.*.pattern",
)
HEADS = (
    "training.steps=1500",
    "model.heads=4",
    "model.width=32",
    "task.test=400",
    "audit.sequences=400",
)
CHOSEN = {  # figures of the first run, and what is chosen in a second picture of each
    "verdicts": "",
    "faithfulness": "",
    "gaps": "",
    "accuracy": "",
    "who_is_right": "one-hot attention · layer 1 pattern",
    "gap_by_kind": "",
    "facets": "one-hot attention · layer 1 pattern",
    "attended_depth": "",
    "key_query": "",
    "attention": "",
    "training": "",
}


def picture(figure: Figure, name: str, **chosen: str) -> None:
    """Write a figure as PNG, as large as it may be."""
    config = json.loads(in_light(json.dumps(CONFIG | {"background": "#ffffff"})))
    spec = in_light(json.dumps(figure.still(**chosen), allow_nan=False))
    svg = vl_convert.vegalite_to_svg(
        spec, vl_version=VEGA_LITE, config=config, allowed_base_urls=[]
    )
    scale = 1.1
    while len(png := vl_convert.svg_to_png(svg, scale=scale)) > LARGEST:
        scale *= 0.95
    (PICTURES / f"{name}.png").write_bytes(png)
    print(f"{name}: {len(png) // 1000} kB at {scale:.2f}")


def figures(run: Path) -> dict[str, Figure]:
    """Every figure of a run's report by its name."""
    return {f.name: f for section in draw(read(run)).values() for f in section}


def main(folder: Path) -> None:
    """Make both runs, and the pictures of them."""
    PICTURES.mkdir(exist_ok=True)
    spec = am.load_preset("dyck", "demo").model_copy(update={"simplify": VIEWS})
    drawn = figures(am.run_study(spec, folder / "dyck").path)
    for name, second in CHOSEN.items():
        figure = drawn[name]
        picture(figure, name)
        for choice in figure.choices:
            for value, text in choice.options:
                if second and text == second:
                    picture(figure, f"{name}_2", **{choice.name: value})
    small = am.load_preset("dyck", "smoke", HEADS).model_copy(
        update={"simplify": (), "each_head": ("svd(rank=[1,2,4,8])@*.*.{query,key}",)}
    )
    for name, figure in figures(am.run_study(small, folder / "heads").path).items():
        if name.startswith("head"):
            picture(figure, name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/pictures"))
