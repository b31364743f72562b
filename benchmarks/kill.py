"""Kill a smoke run at random moments, each time followed by the same command: the same results?

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
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        start = time.monotonic()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - start
        print(f"uninterrupted: {took:.1f} s", flush=True)
        rng = random.Random(options.seed)
        kills = 0
        while kills < options.kills:
            if kill_after(killed, rng.uniform(0, took / 2)):
                kills += 1
                print(f"kill -9 number {kills}, {reached(killed)}", flush=True)
            if (killed / "checks.json").exists():  # behind the numbers: finish, and begin anew
                finish(killed, whole)
                killed = killed.with_name(killed.name + "+")
        finish(killed, whole)
        print(f"results.parquet is the same to the byte after {kills} kills")


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
    cells = len(list(out.glob("seed-0/cells/*/*.parquet")))
    for file, words in (
        ("checks.json", "in the report"),
        ("results.parquet", "behind the results"),
        ("seed-0/simplifications.safetensors", f"with {cells} cells"),
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
