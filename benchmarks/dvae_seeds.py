"""Train the dVAE from several seeds, and count the runs whose codebook collapsed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.cli import ArgumentParser, positive_int, start
from utils.tables import read_numbers

COLLAPSED = 3.0  # a perplexity below this: nearly everything is one code


def main() -> None:
    args, flags = parse_args()
    for dataset in args.datasets:
        collapsed = 0
        for seed in range(args.num_seeds):
            folder = args.output_dir / Path(dataset).name / str(seed)
            run = ["--dataset", dataset, "--seed", str(seed), "--output_dir", folder, *flags]
            script = ROOT / "lesson_08/train_dvae.py"
            subprocess.run([sys.executable, script, *run], check=True, stdout=subprocess.DEVNULL)
            last = read_numbers(folder / "held_out_metrics.csv")[-1]
            collapsed += last["perplexity"] < COLLAPSED
            figures = (
                f"MSE {last['mse']:.4f}, perplexity {last['perplexity']:5.1f}, codes used {last['codes_used']:.0f}"
            )
            print(f"{dataset}, seed {seed}: {figures}", flush=True)
        print(f"{dataset}: {collapsed} of {args.num_seeds} collapsed", flush=True)


def parse_args():
    parser = ArgumentParser(f"{__doc__} Other flags go to lesson_08/train_dvae.py.")
    parser.add_argument("--datasets", nargs="+", default=["mnist", "colored_mnist"], help="each as --dataset takes it")
    parser.add_argument("--num_seeds", type=positive_int, default=10, help="from 0 up")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "output/dvae_seeds", help="a folder for each run")
    return parser.parse_known_args()


if __name__ == "__main__":
    start(main)
