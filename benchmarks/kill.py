"""Kill smoke runs, each at a random moment, and give the same command again: the same results?

    python benchmarks/kill.py --kills 10 --seed 0

Ends with code 1 if `results.parquet` is not, byte for byte, that of a run that nobody killed.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0, help="of the moments")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        start = time.monotonic()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - start
        print(f"uninterrupted: {took:.1f} s", flush=True)
        rng = random.Random(options.seed)
        for number in range(options.kills):
            moment = took * (number + rng.random()) / options.kills  # one in every tenth of the run
            killed = Path(folder) / f"killed-{number}"
            if kill_after(killed, moment):
                print(f"kill -9 after {moment:.1f} s, {reached(killed)}", end="", flush=True)
            else:
                print(f"over before it was killed after {moment:.1f} s", end="", flush=True)
            finish(killed, whole)
            print(": the same to the byte", flush=True)


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "anamorph", "run", "dyck", "--preset", "smoke", "--out", str(out)]


def kill_after(out: Path, seconds: float) -> bool:
    """Whether the run was still going on when it was killed."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(f"the command failed with code {process.returncode}")
    return False


def reached(out: Path) -> str:
    """How far a run is, in words."""
    works = len(list(out.glob("seed-0/works/*.parquet")))
    for file, words in (
        ("checks.json", "in the report"),
        ("results.parquet", "behind the results"),
        ("seed-0/simplifications.safetensors", f"with {works} works"),
        ("seed-0/model.safetensors", "behind the training"),
        ("seed-0/checkpoint.safetensors", "in the training, behind a checkpoint"),
        ("spec.json", "at the beginning of the training"),
    ):
        if (out / file).exists():
            return words
    return "before the specification was written"


def finish(killed: Path, whole: Path) -> None:
    subprocess.run(command(killed), check=True, stdout=subprocess.DEVNULL)
    for name in ("results.parquet", "gaps.parquet", "claims.json"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            raise SystemExit(f"{name} of the killed run is another")


if __name__ == "__main__":
    main()
