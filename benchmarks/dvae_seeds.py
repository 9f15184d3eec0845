"""Train the dVAE from several seeds, and count the runs whose codebook collapsed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.cli import ArgumentParser, new_folder, positive_int, start
from utils.tables import read_numbers

COLLAPSED = 3.0  # a perplexity below this: nearly everything is one code


def main() -> None:
    args = parse_args()
    flags = ["--data_dir", args.data_dir]
    if args.num_training_steps:
        flags += ["--num_training_steps", args.num_training_steps]
    for dataset in args.datasets:
        collapsed = 0
        for seed in range(args.num_seeds):
            folder = args.output_dir / Path(dataset).name / str(seed)
            run = ["--dataset", dataset, "--seed", str(seed), "--output_dir", folder, *flags]
            script = ROOT / "lesson_08/train_dvae.py"
            subprocess.run([sys.executable, script, *map(str, run)], check=True, stdout=subprocess.DEVNULL)
            last = read_numbers(folder / "held_out_metrics.csv")[-1]
            collapsed += last["perplexity"] < COLLAPSED
            figures = (
                f"MSE {last['mse']:.4f}, perplexity {last['perplexity']:5.1f}, codes used {last['codes_used']:.0f}"
            )
            print(f"{dataset}, seed {seed}: {figures}", flush=True)
        print(f"{dataset}: {collapsed} of {args.num_seeds} collapsed", flush=True)


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--datasets", nargs="+", default=["mnist", "colored_mnist"], help="each as --dataset takes it")
    parser.add_argument("--num_seeds", type=positive_int, default=10, help="from 0 up")
    parser.add_argument(
        "--output_dir", type=new_folder, default=ROOT / "output/dvae_seeds", help="a folder for each run"
    )
    parser.add_argument("--num_training_steps", type=positive_int, help="(default: the preset's)")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="where data are downloaded and prepared")
    return parser.parse_args()


if __name__ == "__main__":
    start(main)
