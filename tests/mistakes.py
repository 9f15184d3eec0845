"""Would the tests notice? `python tests/mistakes.py` puts small, realistic mistakes into a copy of the repository, one at a time,
runs the tests of their area that come by the changed line, and says which mistakes no test noticed.

    python tests/mistakes.py                     all, which takes an hour or two; --jobs 2 halves that
    python tests/mistakes.py --area edits        those of an area
    python tests/mistakes.py --file utils/run.py those in a file
    python tests/mistakes.py --check             whether each can still be put in, which a test does too

Which lines a test comes by is found first, by a run of all tests (pip install pytest-cov); --lines FILE keeps that for
the next time.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv*", "output", "data", "__pycache__", ".pytest_cache", ".ruff_cache")
TIMEOUT = 900  # seconds of a mistake's tests; one that makes them hang, or train in earnest, is noticed
LIBRARIES = (
    "torch torchvision einops transformers matplotlib.pyplot scipy.stats hypothesis mlxtend.data diffusers".split()
)

AREAS = {  # the tests that would have to notice, the quick ones first
    "resume": ["test_run.py", "test_scripts_08.py", "test_folders.py", "test_scripts_17.py", "test_faults.py"],
    "stages": ["test_scripts_17.py", "test_scripts_08.py", "test_run.py"],
    "held-out": ["test_held_out.py", "test_run.py", "test_loops.py", "test_upsampler.py"],
    "own images": ["test_data.py", "test_folders.py"],
    "edits": ["test_edits.py", "test_diffusion.py"],
    "completion": ["test_completion.py", "test_dall_e.py"],
    "drawing": [
        "test_dall_e.py",
        "test_unclip.py",
        "test_pretrained.py",
        "test_bad_input.py",
        "test_data.py",
        "test_scripts_08.py",
        "test_scripts_17.py",
        "test_figures.py",
    ],
    "choosing": ["test_choosing.py"],
    "up-sampling": ["test_upsampler.py", "test_evaluating.py"],
    "scoring": ["test_scoring.py", "test_evaluating.py"],
    "models": ["test_dvae.py", "test_dall_e.py", "test_clip.py", "test_unclip.py", "test_diffusion.py", "test_bpe.py"],
    "training": ["test_run.py", "test_loops.py", "test_data.py", "test_scripts_08.py"],
    "data": ["test_data.py", "test_colored_mnist.py", "test_folders.py"],
    "command lines": [
        "test_pretrained.py",
        "test_run.py",
        "test_scripts_08.py",
        "test_scripts_17.py",
        "test_bad_input.py",
        "test_change.py",
    ],
    "processes": ["test_processes.py"],
    "devices": ["test_devices.py"],
    "playgrounds": ["test_playground.py"],
    "rooms": ["test_board.py", "test_export.py", "test_gif.py", "test_pretrained_clip.py", "test_pretrained.py"],
}


class Mistake(NamedTuple):
    area: str
    file: str
    breaks: str  # what a user could no longer rely on
    old: str  # occurs once in the file
    new: str


def changed(mistake: Mistake, root: Path) -> str:
    """The text of its file with the mistake made. Raises ValueError if the old text is not there, or more than once."""
    text = (root / mistake.file).read_text()
    if text.count(mistake.old) != 1 or mistake.old == mistake.new:
        raise ValueError(f"{mistake.file}, {mistake.breaks}: the text occurs {text.count(mistake.old)} times.")
    return text.replace(mistake.old, mistake.new)


def record_lines(file: Path, jobs: int) -> None:
    """Run all tests, and write to `file` which of them come by which lines."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "lines"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COVERAGE_FILE": str(recorded)}
        options = ["-q", "-p", "no:cacheprovider", "-n", str(jobs), "--cov", "--cov-context=test", "--cov-report="]
        subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, env=environment)
        shutil.move(recorded, file)


def tests_of(mistake: Mistake, lines: Path) -> list[list[str]]:
    """The tests of a mistake's area that come by its lines; and then all of the area, as lines are also run by imports, by
    fixtures that several files share, and by processes of their own."""
    from coverage import CoverageData

    files = [f"tests/{name}" for name in AREAS[mistake.area] if (ROOT / "tests" / name).exists()]
    data = CoverageData(str(lines))
    data.read()
    first = (ROOT / mistake.file).read_text().split(mistake.old)[0].count("\n") + 1
    by_line = data.contexts_by_lineno(str(ROOT / mistake.file))
    contexts = {c for i in range(first, first + mistake.old.count("\n") + 1) for c in by_line.get(i, ())}
    found = {context.rpartition("|")[0] for context in contexts if context.endswith("|run")}
    found |= {context.partition("::")[0] for context in contexts if context.endswith(("|setup", "|teardown"))}
    # Single tests first, and then whole files.
    in_order = sorted(found, key=lambda test: ("::" not in test, test))
    by_lines = [test for test in in_order if test.partition("::")[0] in files]
    return [by_lines, files] if by_lines else [files]


def run_in_copy(mistake: Mistake, tests: list[str], folder: str, answer) -> None:
    """Make the mistake in a copy of the repository in a new folder, and put the first test that fails there, or None, into
    the queue `answer`. Runs in a process of its own."""
    root = Path(folder) / "copy"
    shutil.copytree(ROOT, root, ignore=LEFT_BEHIND)
    if (ROOT / "data").exists():
        (root / "data").symlink_to(ROOT / "data")
    (root / mistake.file).write_text(changed(mistake, ROOT))
    failed = []

    class Watch:
        """Which tests, or files of tests, failed."""

        def pytest_runtest_logreport(self, report):
            failed.extend([report.nodeid] * report.failed)

        pytest_collectreport = pytest_runtest_logreport

    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    os.chdir(root)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")]
    sys.dont_write_bytecode = True
    code = pytest.main(
        ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", *tests], plugins=[Watch()]
    )
    answer.put(failed[0] if failed else None if code == 0 else f"exit code {code}")


def noticed_by(mistake: Mistake, scratch: Path, lines: Path) -> str | None:
    """The first test that fails with the mistake made, or None."""
    return next(filter(None, (failing(mistake, tests, scratch) for tests in tests_of(mistake, lines))), None)


def failing(mistake: Mistake, tests: list[str], scratch: Path) -> str | None:
    """The first of some tests that fails with the mistake made, or None. Runs in a process that is forked, as importing
    torch takes seconds."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        answer, deadline = fork.Queue(), time.monotonic() + TIMEOUT
        process = fork.Process(target=run_in_copy, args=(mistake, tests, folder, answer))
        process.start()
        try:
            while time.monotonic() < deadline:
                alive = process.is_alive()  # asked first, as it may answer and end right after
                with contextlib.suppress(queue.Empty):
                    return answer.get(timeout=1)
                if not alive:
                    return "the end of the process"
            return "a test that did not end"
        finally:
            process.kill()
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--area", choices=AREAS)
    parser.add_argument("--file")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    parser.add_argument(
        "--lines", type=Path, help="which tests come by which lines, if FILE is there; else written to it"
    )
    args = parser.parse_args()
    chosen = [m for m in MISTAKES if args.area in (None, m.area) and args.file in (None, m.file)]
    if args.check:
        return check(chosen)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as threads:
        results, lines = [], args.lines or Path(scratch) / "lines"
        if not lines.exists():
            record_lines(lines, args.jobs)
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        for mistake, test in zip(chosen, threads.map(lambda m: noticed_by(m, Path(scratch), lines), chosen)):
            results.append((mistake, test))
            print(f"{'noticed' if test else 'NOT NOTICED'}: {mistake.area}, {mistake.breaks} ({test})", flush=True)
    for area in AREAS:
        of_area = [test for mistake, test in results if mistake.area == area]
        if of_area:
            print(f"{area}: {sum(test is not None for test in of_area)} of {len(of_area)}")
    print(f"all: {sum(test is not None for _, test in results)} of {len(results)}")


def check(mistakes: list[Mistake]) -> None:
    """Raises ValueError if one of them cannot be put in any more, unless its file belongs to a room that was taken away."""
    for mistake in mistakes:
        if (ROOT / mistake.file).exists():
            changed(mistake, ROOT)


MISTAKES = [
    Mistake(
        "resume",
        "utils/run.py",
        "a resumed run keeps its own seed",
        'self.training = replace(self.training, seed=checkpoint["training"]["seed"])',
        "pass",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "a run is not gone on with otherwise",
        '            raise UserError(f"{path} was trained otherwise',
        '            print(f"{path} was trained otherwise',
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "a resumed run goes on at the checkpoint's step",
        'self.step, self.held_out = checkpoint["step"], checkpoint["held_out"]',
        'self.held_out = checkpoint["held_out"]',
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "held-out metrics are in the checkpoints",
        '"held_out": self.held_out, "model"',
        '"held_out": {}, "model"',
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "held-out metrics come back on --resume",
        'self.step, self.held_out = checkpoint["step"], checkpoint["held_out"]',
        'self.step = checkpoint["step"]',
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "what is finished is not trained past its end",
        "if self.step >= self.training.num_training_steps:",
        "if self.step > self.training.num_training_steps:",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "an earlier run is moved aside",
        "checkpoints.move_aside(self.folder, self.name)",
        "pass",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "rows of steps after the checkpoint are dropped",
        'self.folder.glob("*metrics.csv")',
        'self.folder.glob("held*metrics.csv")',
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "held-out rows of steps after the checkpoint are dropped",
        'self.folder.glob("*metrics.csv")',
        'self.folder.glob("metrics.csv")',
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another batch size is refused",
        "sample_every seed mixed_precision",
        "sample_every batch_size seed mixed_precision",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another learning rate is refused",
        "sample_every seed mixed_precision",
        "sample_every learning_rate seed mixed_precision",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another weight decay is refused",
        "sample_every seed mixed_precision",
        "sample_every weight_decay seed mixed_precision",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another config, of the same shapes, is refused",
        'facts = {**of["config"], "number of images"',
        'facts = {"number of images"',
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another number of images is refused",
        '"number of images": of["num_images"], ',
        "",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another tokenizer is refused",
        ', "tokenizer": of["tokenizer"]}',
        "}",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "other data are refused",
        'facts |= {f"{name} of the data": value for name, value in of["data"].items()}',
        "pass",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "another dVAE or CLIP than the one that was learned from is refused",
        'return facts | {f"the {name} it learned from": source["fingerprint"] for name, source in of["sources"].items()}',
        "return facts",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "more steps may be asked for",
        'MAY_CHANGE = set("num_training_steps save_every',
        'MAY_CHANGE = set("save_every',
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "the newest checkpoint is the one of most steps",
        "return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))",
        "return dict(sorted(((int(match[1]), path) for path, match in matches.items() if match), key=lambda x: x[1].stat().st_mtime))",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "1000 is more than 900",
        "return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))",
        "return dict(sorted(((int(match[1]), path) for path, match in matches.items() if match), key=lambda x: str(x[0])))",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "the averages are restored",
        'averaged.module.load_state_dict(checkpoint["ema"])',
        "pass",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "the number of averaged steps is restored",
        'averaged.n_averaged.fill_(checkpoint["step"])',
        "pass",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "the optimizers' states are restored",
        "        optimizer.load_state_dict(state)",
        "        pass",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "a checkpoint is on the disk before it has its name",
        "            os.fsync(file.fileno())\n",
        "",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "a reader finds the old file or the new one",
        'temporary = path.with_name(f".{path.name}.tmp")',
        "temporary = path",
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "several earlier runs are kept apart",
        "            number += 1\n        aside.mkdir()",
        "            break\n        aside.mkdir(exist_ok=True)",
    ),
    Mistake(
        "resume",
        "utils/tables.py",
        "rows up to the checkpoint stay",
        'if int(row["step"]) <= step]',
        'if int(row["step"]) < step]',
    ),
    Mistake(
        "resume",
        "utils/machine.py",
        "a folder takes one run at a time",
        "            lock.acquire()\n",
        "",
    ),
    Mistake(
        "resume",
        "utils/machine.py",
        "what a killed run left half-written is deleted",
        "                half_written.unlink()",
        "                pass",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "a signal saves",
        "                    self.save()\n                    say(",
        "                    say(",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "a signal ends the program with 128 + its number",
        "sys.exit(128 + self.signals[0])",
        "sys.exit(0)",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "a loss that is not finite stops the run",
        "        if bad:\n",
        "        if False:\n",
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "everything random in a step follows from its number",
        "torch.manual_seed(hash((t.seed, step, machine.process_index())) % 2**32)",
        "torch.manual_seed(hash((t.seed, step - start, machine.process_index())) % 2**32)",
    ),
    Mistake(
        "stages",
        "utils/run.py",
        "a stage that was stopped half-way is not finished",
        'if path != self.folder / f"{self.name}-{self.training.num_training_steps}.pt":',
        "if path is None:",
    ),
    Mistake(
        "stages",
        "utils/run.py",
        "a stage of another config is trained anew",
        "        return not other\n",
        "        return True\n",
    ),
    Mistake(
        "stages",
        "lesson_17/train_mnist.py",
        "a stage that is finished is skipped",
        '{"resume": args.resume, "skip_finished": True}',
        '{"resume": args.resume, "skip_finished": False}',
    ),
    Mistake(
        "stages",
        "lesson_17/train_mnist.py",
        "--resume goes on with what is not finished",
        '{"resume": args.resume, "skip_finished": True}',
        '{"resume": False, "skip_finished": True}',
    ),
    Mistake(
        "stages",
        "lesson_17/pipeline.py",
        "a prior and a decoder of another CLIP are refused",
        'if source["fingerprint"] != clip.source["fingerprint"]:',
        "if False:",
    ),
    Mistake(
        "stages",
        "lesson_17/pipeline.py",
        "a decoder of another CLIP than the prior's is refused",
        "for name, checkpoint in checkpoints.items():",
        "for name, checkpoint in list(checkpoints.items())[:1]:",
    ),
    Mistake(
        "stages",
        "lesson_08/pipeline.py",
        "a dVAE that the transformer did not learn from is refused",
        'if fingerprint(dvae.state_dict()) != source.get("fingerprint"):',
        "if False:",
    ),
    Mistake(
        "stages",
        "utils/checkpoints.py",
        "a fingerprint tells weights apart",
        "        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())\n",
        "",
    ),
    Mistake(
        "stages",
        "lesson_17/train_mnist.py",
        "a CLIP that was named is taken, and none trained",
        "given = FrozenCLIP.load(args.clip_checkpoint) if args.clip_checkpoint else None",
        "given = None",
    ),
    Mistake(
        "stages",
        "lesson_17/train_prior.py",
        "the prior's checkpoint names its CLIP",
        '"sources": {"clip": clip.source}',
        '"sources": {"clip": {**clip.source, "fingerprint": ""}}',
    ),
    Mistake(
        "stages",
        "utils/datasets/__init__.py",
        "a later stage takes the data of the earlier one",
        "source = replace(earlier, **{",
        "source = replace(source, **{",
    ),
    Mistake(
        "stages",
        "utils/datasets/__init__.py",
        "another size than the earlier stage's is refused",
        "if (source.image_size, source.image_channels) != (earlier.image_size, earlier.image_channels):",
        "if False:",
    ),
    Mistake(
        "stages",
        "lesson_17/train_decoder.py",
        "a decoder of larger images than the data's is refused",
        "if image_size and image_size > source.image_size:",
        "if False:",
    ),
    Mistake(
        "stages",
        "lesson_08/train_mnist.py",
        "the dVAE beside the output folder comes before the one in output/",
        'find_checkpoint(args.dvae_checkpoint, "dvae", folder.parent) or find_checkpoint(None, "dvae")',
        'find_checkpoint(args.dvae_checkpoint, "dvae")',
    ),
    Mistake(
        "stages",
        "utils/checkpoints.py",
        "the averaged weights are the ones that are used",
        'return {**checkpoint["model"], **(checkpoint["ema"] or {})}',
        'return checkpoint["model"]',
    ),
    Mistake(
        "held-out",
        "lesson_08/train_dvae.py",
        "the dVAE is measured on test images",
        "held_out = test_set.subset(slice(NUM_HELD_OUT))",
        "held_out = train_set.subset(slice(NUM_HELD_OUT))",
    ),
    Mistake(
        "held-out",
        "lesson_08/train_mnist.py",
        "DALL·E is measured on test images",
        "held_out = test_set.subset(slice(NUM_HELD_OUT))",
        "held_out = train_set.subset(slice(NUM_HELD_OUT))",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_clip.py",
        "CLIP is measured on test images",
        "held_out = test_set.subset(slice(NUM_HELD_OUT))",
        "held_out = train_set.subset(slice(NUM_HELD_OUT))",
    ),
    Mistake(
        "held-out",
        "lesson_17/frozen_clip.py",
        "the prior and the decoder are measured on test images",
        "held_out = data.test_set.subset(slice(NUM_HELD_OUT))",
        "held_out = data.train_set.subset(slice(NUM_HELD_OUT))",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_upsampler.py",
        "the up-sampler is measured on test images",
        "test_set.subset(slice(NUM_HELD_OUT)), shown.images()",
        "train_set.subset(slice(NUM_HELD_OUT)), shown.images()",
    ),
    Mistake(
        "held-out",
        "lesson_08/train_mnist.py",
        "held-out captions are looked up in their own table",
        "held_out_captions.draw(held_out.draw_captions())",
        "captions.draw(held_out.draw_captions())",
    ),
    Mistake(
        "held-out",
        "lesson_08/train_mnist.py",
        "held-out tokens are those of the held-out images",
        "for images in (train_set, held_out))",
        "for images in (train_set, train_set.subset(slice(len(held_out)))))",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_clip.py",
        "the nearest captions are sought among the held-out images' captions",
        "held_out_tokens = tokenize(tokenizer, held_out.captions,",
        "held_out_tokens = tokenize(tokenizer, train_set.captions,",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_decoder.py",
        "each held-out image is decoded from its own embedding",
        "held_out.image_embed[index], text_encodings)",
        "held_out.image_embed[index.flip(0)], text_encodings)",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_decoder.py",
        "each held-out image is decoded with its own caption",
        "held_out.captions[held_out.images.caption_ids[index, 0]]",
        "held_out.captions[held_out.images.caption_ids[index.flip(0), 0]]",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_upsampler.py",
        "the held-out small images are corrupted as in training",
        "small = corrupt(shrink(images, c.small_size))",
        "small = shrink(images, c.small_size)",
    ),
    Mistake(
        "held-out",
        "lesson_08/train_dvae.py",
        "the held-out MSE is of hard tokens' reconstructions",
        "mse = (reconstructions - images.images()).square().mean()",
        "mse = (reconstructions - images.images()).abs().mean()",
    ),
    Mistake(
        "held-out",
        "lesson_08/train_mnist.py",
        "the image loss is not the text's",
        '[parts["text_loss"], parts["image_loss"]]',
        '[parts["image_loss"], parts["text_loss"]]',
    ),
    Mistake(
        "held-out",
        "utils/run.py",
        "evaluation has the averaged weights",
        "model = self.model if self.averaged is None else self.averaged.module",
        "model = self.model",
    ),
    Mistake(
        "held-out",
        "utils/run.py",
        "evaluation is in evaluation mode",
        "yield model.eval()",
        "yield model",
    ),
    Mistake(
        "held-out",
        "utils/run.py",
        "training goes on in training mode after an evaluation",
        "            yield model.eval()\n        self.model.train()",
        "            yield model.eval()",
    ),
    Mistake(
        "held-out",
        "utils/run.py",
        "evaluations have the same random numbers each time",
        "            torch.manual_seed(self.training.seed)\n            yield",
        "            yield",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_prior.py",
        "the own caption is the one that was asked for",
        "same[nearest_caption, asked]",
        "same[nearest_caption, asked.flip(0)]",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_prior.py",
        "the cosine to the images is with the caption's own images",
        "(drawn * means[asked]).sum(dim=1).mean()",
        "(drawn * means[asked.flip(0)]).sum(dim=1).mean()",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_prior.py",
        "the cosine to the caption is with the own one",
        "(drawn * text_embed[shown[asked]]).sum(dim=1).mean()",
        "(drawn * text_embed[shown[asked.flip(0)]]).sum(dim=1).mean()",
    ),
    Mistake(
        "held-out",
        "lesson_17/frozen_clip.py",
        "zero-shot: any valid caption is right",
        "(images.caption_ids == nearest[:, None]).any(dim=1)",
        "(images.caption_ids[:, 0] == nearest)",
    ),
    Mistake(
        "held-out",
        "lesson_17/train_prior.py",
        "the grid shows the test images nearest to the drawn embeddings",
        "return held_out.images.images(nearest_image), {",
        "return held_out.images.images(slice(len(nearest_image))), {",
    ),
    Mistake(
        "held-out",
        "utils/data.py",
        "of rows that do not divide into chunks the last ones count too",
        "starts = range(0, len(batches[0]), batch_size)",
        "starts = range(0, max(1, len(batches[0]) - batch_size + 1), batch_size)",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "images that changed on the disk are decoded anew",
        "seen = [(*record, file.st_size, file.st_mtime_ns) for record, file in zip(records, files)]",
        "seen = [record.name for record in records]",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "the split is the same one each time",
        "torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()",
        "torch.randperm(len(captions)).tolist()",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a twentieth is kept for the test",
        "TEST_FRACTION = 0.05",
        "TEST_FRACTION = 0.5",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "validation/ is not trained on",
        '{"test", "validation", "valid", "val"}',
        '{"test"}',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a hub set's test split is not trained on",
        "                    split.lower() in TEST_NAMES,",
        "                    False,",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a folder's test/ is not trained on",
        "is_test = any(part.lower() in TEST_NAMES for part in Path(name).parts[:-1])",
        "is_test = False",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a folder of test/ alone has images to train on, too",
        "if not any(is_test) or all(is_test):",
        "if not any(is_test):",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a metadata.csv may have semicolons",
        'delimiter = max(",;\\t", key=text.partition("\\n")[0].count)',
        'delimiter = ","',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a metadata.csv may have a byte order mark",
        'content.decode("utf-8-sig")',
        'content.decode("utf-8")',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "images are resized by a filter, not by dropping pixels",
        "Image.Resampling.LANCZOS",
        "Image.Resampling.NEAREST",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "images are turned as their camera says",
        "image = ImageOps.exif_transpose(image)",
        "pass",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "transparent images are on white",
        'Image.new("RGBA", image.size, "white")',
        'Image.new("RGBA", image.size, "black")',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "16 bits keep their brightness",
        "value / 257",
        "value / 1",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "the middle square is kept",
        "ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)",
        "ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS, centering=(0, 0))",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "each image keeps its captions when they are put in order",
        '"captions": [captions[i] for i in order],',
        '"captions": captions,',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "what is left out is told",
        '        say(f"Of {source.dataset}, {line}.")',
        "        pass",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a link out of the folder is left out",
        "if not path.resolve().is_relative_to(inside):",
        "if False:",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a text file's lines are captions of their own",
        'captions[image] += read_text(path, problems).split("\\n")',
        "captions[image] += [read_text(path, problems)]",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "all captions of a JSON list are taken",
        "yield str(name), texts if isinstance(texts, list) else [texts]",
        "yield str(name), texts[:1] if isinstance(texts, list) else [texts]",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "the caption column that was asked for is taken",
        "for name in (given,) if given else usual:",
        "for name in usual:",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "the names of classes are captions",
        "[names[value] if names and isinstance(value, int) else value]",
        "[str(value)]",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "an image that cannot be read is left out and named",
        'problems.add("images cannot be read, and are left out", record.name)',
        "pass",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "gray is the brightness of the colors",
        '.convert("RGB" if channels == 3 else "L")',
        '.split()[0].convert("RGB" if channels == 3 else "L")',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "another size is decoded anew",
        "short_hash([asdict(source), str(folder.resolve())])",
        "short_hash([str(folder.resolve())])",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "captions are of distinct numbers",
        "places.setdefault(text, len(places))",
        "places.setdefault(text.lower(), len(places))",
    ),
    Mistake(
        "playgrounds",
        "utils/playground.py",
        "a proxy does not keep the page from being served",
        '("_proxy", "_num_ports")',
        '("_num_ports",)',
    ),
    Mistake(
        "playgrounds",
        "utils/playground.py",
        "what loads data from elsewhere keeps its proxy",
        "os.environ.update(before)",
        "pass",
    ),
    Mistake(
        "playgrounds",
        "utils/playground.py",
        "pictures are kept in a folder of their own",
        ', "GRADIO_TEMP_DIR": FILES.name',
        "",
    ),
    Mistake(
        "devices",
        "lesson_08/dvae.py",
        "a training step does not wait for the device to count codes",
        "counts.index_add_(0, image_tokens.flatten(), counts.new_ones(image_tokens.numel()))",
        "counts = torch.bincount(image_tokens.flatten(), minlength=codebook_size)",
    ),
    Mistake(
        "devices",
        "lesson_08/dall_e.py",
        "on a GPU the residual stream keeps its precision",
        'if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):',
        'if torch.is_autocast_enabled("cpu"):',
    ),
    Mistake(
        "devices",
        "lesson_17/diffusion.py",
        "drawing does not wait for the device at each step",
        "return list(torch.linspace(self.num_timesteps, 0, min(num_steps, self.num_timesteps) + 1).round().long())",
        "count, device = min(num_steps, self.num_timesteps) + 1, self.sqrt_alphas_cumprod.device\n"
        "        return list(torch.linspace(self.num_timesteps, 0, count, device=device).round().long())",
    ),
    Mistake(
        "devices",
        "lesson_17/edit_mnist.py",
        "inverting puts timesteps on the images' device",
        "t.expand(len(x_t)).to(x_t.device)",
        "t.expand(len(x_t))",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "what needs digits refuses other images",
        "if source.dataset not in DIGITS:",
        "if False:",
    ),
    Mistake(
        "scoring",
        "benchmarks/decoder_hears.py",
        "how much a picture follows its embedding is apart from its digit",
        "return z - mean[digits]",
        "return z - z.mean(dim=0)",
    ),
    Mistake(
        "scoring",
        "benchmarks/changed_copy.py",
        "a trial whose line is gone is not taken for one that was made",
        "if text.count(line) != 1:",
        "if text.count(line) > 1:",
    ),
    Mistake(
        "scoring",
        "benchmarks/trials.py",
        "a CLIP's margins are quoted in units of their median",
        "(margin.quantile(q) / margin.median())",
        "margin.quantile(q)",
    ),
    Mistake(
        "scoring",
        "benchmarks/figures_08.py",
        "the figure of tokens shows those that are drawn so far",
        "dvae.decode(torch.where(place < number, image_tokens, dvae.encode(black)))",
        "dvae.decode(torch.where(place < number - 7, image_tokens, dvae.encode(black)))",
    ),
    Mistake(
        "scoring",
        "benchmarks/figures_08.py",
        "the figure of tokens is gray where none is yet",
        "torch.where(drawn > 0, images, 0.4)",
        "images",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--box says what is drawn anew",
        "known = outside(args.box, x_0)",
        "known = outside([4, 4, 14, 24], x_0)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--guidance_scale guides what is drawn anew",
        "seeds, args.sampling_steps, args.guidance_scale)",
        "seeds, args.sampling_steps, GUIDANCE_SCALE)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "default prompts of an odd number of captions make pairs",
        "args.prompts = args.prompts[: len(args.prompts) // 2 * 2]",
        "pass",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "a caption is not turned toward itself",
        "if prompt == to_prompt:",
        "if False:",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "the arc goes from the first to the second",
        "(torch.sin((1 - fraction) * angle) * a + torch.sin(fraction * angle) * b)",
        "(torch.sin((1 - fraction) * angle) * b + torch.sin(fraction * angle) * a)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "a difference points to the second caption",
        "F.normalize(z_to - z_from, dim=-1)",
        "F.normalize(z_from - z_to, dim=-1)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--fraction says how far text_diff turns",
        "torch.linspace(0, args.fraction, NUM_COLUMNS",
        "torch.linspace(0, 0.5, NUM_COLUMNS",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--eta says how much fresh noise variations get",
        '"eta": args.eta, "randn": SeededNoise',
        '"eta": 1.0, "randn": SeededNoise',
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "variations are guided as asked",
        "args.sampling_steps, args.guidance_scale, **noise)",
        "args.sampling_steps, 1.0, **noise)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "variations have fresh noise",
        '"eta": args.eta, "randn": SeededNoise',
        '"randn": SeededNoise',
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "an image is inverted from the decoder's range",
        "invert(pipeline.decoder.diffusion, network, to_x_0(x_0), num_steps)",
        "invert(pipeline.decoder.diffusion, network, x_0, num_steps)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "the way back is the way there, nothing cut off",
        "guidance_scale, num_steps, math.inf, **noise)",
        "guidance_scale, num_steps, **noise)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "the box is left, top, right, bottom",
        "known[top:bottom, left:right] = False",
        "known[left:right, top:bottom] = False",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "inpainting draws for the second caption",
        "rows.append(inpaint(pipeline, x_0, known, to_prompts,",
        "rows.append(inpaint(pipeline, x_0, known, from_prompts,",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "the widest component comes first",
        "return mean, directions.flip(1).T",
        "return mean, directions.T",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "what is known has as much noise as there is at that step",
        "torch.where(known, a_s * x_0 + b_s * randn(x.shape).to(x), drawn)",
        "torch.where(known, x_0, drawn)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "inpainting keeps x_0 in the decoder's range",
        "randn=randn, x_0_range=1.0\n",
        "randn=randn\n",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "each inpainting step is taken several times",
        "for _ in range(num_repeats):",
        "for _ in range(1):",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "inversion is iterated",
        "for _ in range(num_iterations):",
        "for _ in range(1):",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--guidance_scale guides inpainting",
        "network = guided(pipeline.decoder, guidance_scale, image_embed, text_encodings)",
        "network = guided(pipeline.decoder, 1.0, image_embed, text_encodings)",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "interpolation changes z_i alone in its second row",
        '("z_i", between_z, x_a.expand_as(between_x)),',
        '("z_i", between_z, between_x),',
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "interpolation changes x_T alone in its third row",
        '("x_T", z_a.expand_as(between_z), between_x),',
        '("x_T", between_z, between_x),',
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "interpolation goes between two images of a pair",
        "pair, (z_a, z_b), (x_a, x_b) = x_0[i : i + 2], z_i[i : i + 2, None]",
        "pair, (z_a, z_b), (x_a, x_b) = x_0[i : i + 2], z_i[:2, None]",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "components are taken around the mean",
        "cut = mean + (z_i - mean) @",
        "cut = z_i @",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "the image of a prompt has that caption",
        "fitting = test_set.index_of(prompt).tolist()",
        "fitting = list(range(len(test_set)))",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--seed chooses the images",
        "rng, chosen = random.Random(seed), []",
        "rng, chosen = random.Random(0), []",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--sampling_steps are those of the way there, too",
        "images_to_edit(test_set, args.prompts, args), args.sampling_steps)\n    rows = [x_0, decode(",
        "images_to_edit(test_set, args.prompts, args), 50)\n    rows = [x_0, decode(",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "a picture of one's own is edited in the place of a test image",
        "    if args.image:\n        return read_pictures(args.image, test_set)\n",
        "",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "components have a random x_T in their second row",
        "random_x_T = SeededNoise([args.seed + i for i in range(len(x_T))]).randn(x_T.shape).to(x_T)",
        "random_x_T = x_T",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "completion begins with what is kept",
        "pipeline.draw(prompts, seeds, prefix=prefix, **sampling)",
        "pipeline.draw(prompts, seeds, **sampling)",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "the image is one of the prompt",
        "rng.choice(test_set.index_of(prompt).tolist() or range(len(test_set)))",
        "rng.choice(range(len(test_set)))",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "the kept tokens know nothing of the lower half",
        "pipeline.dvae.encode(images[:, :, :pixel_rows])",
        "pipeline.dvae.encode(images)[:, : rows * config.grid_size]",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "the kept tokens are the upper ones",
        "pipeline.dvae.encode(images[:, :, :pixel_rows])",
        "pipeline.dvae.encode(images[:, :, -pixel_rows:])",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "--rows says how much is kept",
        "kept, prefix = upper_rows(pipeline, originals, args.rows)",
        "kept, prefix = upper_rows(pipeline, originals, 4)",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "the grid shows what was kept",
        "kept[:, :, pixel_rows:] = 0.5",
        "kept[:, :, :pixel_rows] = 0.5",
    ),
    Mistake(
        "completion",
        "lesson_08/dall_e.py",
        "generate continues its prefix",
        "for index in range(image_tokens.shape[1], num_tokens):",
        "for index in range(0, num_tokens):",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "--seed chooses the images",
        "rng = random.Random(seed)",
        "rng = random.Random(0)",
    ),
    Mistake(
        "completion",
        "lesson_08/complete_mnist.py",
        "sampling flags have their effect",
        "sampling = {name: getattr(args, name) for name in DEFAULT_SAMPLING}",
        "sampling = DEFAULT_SAMPLING",
    ),
    Mistake(
        "drawing",
        "lesson_08/generate_mnist.py",
        "sampling flags have their effect",
        "draw_samples(pipeline, args, {name: getattr(args, name) for name in DEFAULT_SAMPLING})",
        "draw_samples(pipeline, args, DEFAULT_SAMPLING)",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "each image has a seed of its own",
        "seeds, chunks = [args.seed + i for i in range(len(prompts))], []",
        "seeds, chunks = [args.seed for i in range(len(prompts))], []",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "--seed has its effect",
        "seeds, chunks = [args.seed + i for i in range(len(prompts))], []",
        "seeds, chunks = list(range(len(prompts))), []",
    ),
    Mistake(
        "drawing",
        "lesson_17/generate_mnist.py",
        "sampling flags have their effect",
        "draw_samples(pipeline, args, {name: getattr(args, name) for name in DEFAULT_SAMPLING})",
        "draw_samples(pipeline, args, DEFAULT_SAMPLING)",
    ),
    Mistake(
        "drawing",
        "lesson_17/pipeline.py",
        "--prior_guidance_scale has its effect",
        "self.inputs(prompts, prior_guidance_scale, sampling_steps, randn)",
        "self.inputs(prompts, 1.0, sampling_steps, randn)",
    ),
    Mistake(
        "drawing",
        "lesson_17/pipeline.py",
        "--guidance_scale has its effect",
        "x_T, guidance_scale, sampling_steps, eta=eta",
        "x_T, 1.0, sampling_steps, eta=eta",
    ),
    Mistake(
        "drawing",
        "lesson_17/pipeline.py",
        "--eta has its effect",
        "sampling_steps, eta=eta, randn=randn",
        "sampling_steps, eta=0.0, randn=randn",
    ),
    Mistake(
        "drawing",
        "lesson_17/pipeline.py",
        "--sampling_steps has its effect",
        "guidance_scale, sampling_steps, eta=eta",
        "guidance_scale, 20, eta=eta",
    ),
    Mistake(
        "drawing",
        "lesson_17/pipeline.py",
        "the decoder is given the caption",
        "self.decoder, image_embed, text_encodings, x_T, guidance_scale",
        "self.decoder, image_embed, None, x_T, guidance_scale",
    ),
    Mistake(
        "drawing",
        "lesson_17/pipeline.py",
        "each image follows its own seed",
        "randn = SeededNoise(seeds).randn",
        "randn = torch.randn",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "random prompts follow --seed",
        "random.Random(seed).choices(",
        "random.Random(0).choices(",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "an image does not depend on what else is drawn",
        "return torch.stack([torch.rand(shape[1:], generator=generator) for generator in self.generators])",
        "return torch.rand(shape, generator=self.generators[0])",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "samples.csv names the prompt of each file",
        '{"file": names, "prompt": prompts, "seed": seeds, **more}',
        '{"file": names, "prompt": prompts[::-1], "seed": seeds, **more}',
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "samples.csv names the seed of each file",
        '{"file": names, "prompt": prompts, "seed": seeds, **more}',
        '{"file": names, "prompt": prompts, "seed": list(range(len(seeds))), **more}',
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "images of a prompt follow one another",
        "repeated = [prompt for prompt in given for _ in range(num_samples)]",
        "repeated = given * num_samples",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "too many images at once are refused",
        "if num_samples * len(given) > MOST_IMAGES:",
        "if False:",
    ),
    Mistake(
        "drawing",
        "utils/prompts.py",
        "MNIST's models are asked for digits only",
        "        if self.closed:\n",
        "        if False:\n",
    ),
    Mistake(
        "drawing",
        "utils/prompts.py",
        "an empty prompt is refused",
        '        if "" in checked:\n',
        "        if False:\n",
    ),
    Mistake(
        "drawing",
        "utils/prompts.py",
        "words that no caption had are named",
        ".difference(self.words))",
        ".intersection(self.words))",
    ),
    Mistake(
        "training",
        "lesson_17/train_clip.py",
        "CLIP is trained on distorted images",
        "images = distort(train_set.images(index))",
        "images = train_set.images(index)",
    ),
    Mistake(
        "drawing",
        "lesson_17/diffusion_prior.py",
        "the better of two embeddings is kept",
        "better = (second * text_embed).sum(dim=-1) > (first * text_embed).sum(dim=-1)",
        "better = (second * text_embed).sum(dim=-1) < (first * text_embed).sum(dim=-1)",
    ),
    Mistake(
        "drawing",
        "lesson_08/dall_e.py",
        "temperature divides the logits",
        "(logits / temperature).softmax",
        "(logits * temperature).softmax",
    ),
    Mistake(
        "drawing",
        "lesson_08/dall_e.py",
        "temperature 0 takes the likeliest",
        "return logits.argmax(dim=-1)",
        "return logits.argmin(dim=-1)",
    ),
    Mistake(
        "drawing",
        "lesson_08/dall_e.py",
        "top_k keeps k tokens",
        "probs[:, top_k:] = 0",
        "probs[:, top_k + 1 :] = 0",
    ),
    Mistake(
        "drawing",
        "lesson_08/dall_e.py",
        "top_p keeps the tokens that reach it",
        "before >= top_p *",
        "before + probs >= top_p *",
    ),
    Mistake(
        "drawing",
        "lesson_08/dall_e.py",
        "guidance exaggerates the caption",
        "logits = unconditional + guidance_scale * (conditional - unconditional)",
        "logits = conditional + guidance_scale * (unconditional - conditional)",
    ),
    Mistake(
        "drawing",
        "lesson_08/dall_e.py",
        "guidance steers away from the null caption",
        "torch.cat([text_tokens, self.null_caption.expand_as(text_tokens)])",
        "torch.cat([text_tokens, text_tokens.roll(1, dims=0)])",
    ),
    Mistake(
        "drawing",
        "utils/checkpoints.py",
        "the newest in the folder that was named is taken",
        "path = newest_checkpoint(models / name, name)",
        'path = newest_checkpoint(ROOT / "output" / name, name)',
    ),
    Mistake(
        "drawing",
        "utils/checkpoints.py",
        "--pretrained names the data set",
        "pretrained = PRETRAINED[0]\n        say(",
        "pretrained = PRETRAINED[1]\n        say(",
    ),
    Mistake(
        "drawing",
        "utils/plots.py",
        "the grid's captions stand above their own images",
        "for number, line in enumerate(lines[i] if captions else ()):",
        "for number, line in enumerate(lines[i - 1] if captions else ()):",
    ),
    Mistake(
        "drawing",
        "utils/plots.py",
        "the grid goes row by row",
        "left, bottom = i % columns * cell_width, top + (i // columns + 1) * cell_height",
        "left, bottom = i // -(-count // columns) % columns * cell_width, top + (i % -(-count // columns) + 1) * cell_height",
    ),
    Mistake(
        "choosing",
        "utils/drawn_images.py",
        "whatever a broken image provokes becomes a sentence",
        "except Exception as error:",
        "except OSError as error:",
    ),
    Mistake(
        "choosing",
        "utils/drawn_images.py",
        "a last line without its end is read",
        'csv.DictReader(io.StringIO(text, newline=""))',
        'csv.DictReader(io.StringIO(text.rpartition("\\n")[0], newline=""))',
    ),
    Mistake(
        "up-sampling",
        "lesson_17/upsample_mnist.py",
        "images that are no squares are not squashed",
        "if images.shape[2] != images.shape[3]:",
        "if False:",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/upsample_mnist.py",
        "a seed that no generator takes is refused",
        "or len(seed) > 18:",
        "or False:",
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "the nearest are kept",
        "key=lambda i: -cosines[i])",
        "key=lambda i: cosines[i])",
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "--keep says how many",
        "if prompts[i] == prompt][:keep]]",
        "if prompts[i] == prompt][:8]]",
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "each is compared with its own prompt",
        "own = text_embed[[distinct.index(prompt) for prompt in prompts]]",
        "own = text_embed[[0 for prompt in prompts]]",
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "the cosines are of the kept images",
        '[f"{cosines[i]:.3f}" for i in kept]',
        '[f"{cosine:.3f}" for cosine in cosines[: len(kept)]]',
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "the seeds are of the kept images",
        'seeds = [rows[i].get("seed", "") for i in kept]',
        'seeds = [row.get("seed", "") for row in rows[: len(kept)]]',
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "the images are the kept ones",
        "images_of_one_size([images[i] for i in kept])",
        "images_of_one_size(images[: len(kept)])",
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "a CLIP of other images is refused",
        "if images.shape[1:] != (channels, size, size):",
        "if False:",
    ),
    Mistake(
        "choosing",
        "lesson_17/choose_mnist.py",
        "the included CLIP in color is for images in color",
        "PRETRAINED[channels == 3]",
        "PRETRAINED[0]",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/diffusion_upsampler.py",
        "it reads the small image",
        "self.unet(torch.cat([x_t, enlarged], dim=1), time)",
        "self.unet(torch.cat([x_t, 0 * enlarged], dim=1), time)",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/diffusion_upsampler.py",
        "the small image is in the decoder's range",
        "F.interpolate(to_x_0(small),",
        "F.interpolate(small,",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/diffusion_upsampler.py",
        "training blurs the small images",
        "return blurred + NOISE_STD * torch.randn_like(small)",
        "return small + NOISE_STD * torch.randn_like(small)",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/diffusion_upsampler.py",
        "training noises the small images",
        "return blurred + NOISE_STD * torch.randn_like(small)",
        "return blurred",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/upsample_mnist.py",
        "each image follows its own seed",
        "randn = SeededNoise(seeds).randn",
        "randn = torch.randn",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/upsample_mnist.py",
        "all up-samplers are taken",
        "        size = 2 * size\n    if not",
        "        break\n    if not",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/upsample_mnist.py",
        "the seeds of samples.csv are taken",
        'seed = row.get("seed") or str(index)',
        "seed = str(index)",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/train_upsampler.py",
        "an odd size is refused",
        "if size % 2 or size > source.image_size:",
        "if size > source.image_size:",
    ),
    Mistake(
        "up-sampling",
        "lesson_17/train_upsampler.py",
        "it learns from images made small",
        "small = corrupt(shrink(images, size // 2))",
        "small = corrupt(images)",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the confusion matrix has the prompted digits as rows",
        "10 * digits + read",
        "10 * read + digits",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the nearest training image may be in any chunk",
        "torch.where(nearest < best, start + i, index)",
        "torch.where(nearest < best, i, index)",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "what was not asked for is not wrong",
        "(read[kind] == asked[kind]) | (asked[kind] < 0)",
        "read[kind] == asked[kind]",
    ),
    Mistake(
        "scoring",
        "lesson_08/evaluate_mnist.py",
        "samples are drawn with the flags",
        "samples = judge.draw(partial(pipeline.draw, **sampling), args.num_samples)",
        "samples = judge.draw(pipeline.draw, args.num_samples)",
    ),
    Mistake(
        "scoring",
        "lesson_17/evaluate_mnist.py",
        "samples are drawn with the flags",
        "for how in (sampling, unguided)",
        "for how in (DEFAULT_SAMPLING, unguided)",
    ),
    Mistake(
        "scoring",
        "lesson_08/evaluate_mnist.py",
        "bits are not nats",
        "bits = image * config.image_seq_len / math.log(2)",
        "bits = image * config.image_seq_len",
    ),
    Mistake(
        "scoring",
        "lesson_17/evaluate_mnist.py",
        "unguided samples are unguided",
        '"guidance_scale": 1.0, "prior_guidance_scale": 1.0}',
        '"guidance_scale": 1.0}',
    ),
    Mistake(
        "scoring",
        "lesson_08/evaluate_mnist.py",
        "the decibels are of the mean squared error",
        "psnr = -10 * math.log10(mse)",
        "psnr = -20 * math.log10(mse)",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "strokes are thick above the median of their digit",
        "amount_of_ink(images) > self.medians[digit]",
        "amount_of_ink(images) > self.medians.mean()",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the ink is the nearest color",
        "(color @ inks.T).argmax(dim=1)",
        "(color @ inks.T).argmin(dim=1)",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the distance has the term of the means",
        "(a.mean(dim=0) - b.mean(dim=0)).square().sum() + cov_a.trace()",
        "cov_a.trace()",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the distance has the covariances' root",
        "cov_b.trace() - 2 * roots.sum()",
        "cov_b.trace() - roots.sum()",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "diversity is within a digit",
        "features[digits == digit]",
        "features[digits >= 0]",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "diversity is over that of the test images",
        'diversity(features.cpu(), all_asked_for(prompts)["digit"]) / of_real',
        'diversity(features.cpu(), all_asked_for(prompts)["digit"])',
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the floor is of training images",
        "floor = self.frechet_distance(at_random(self.train_set, num_images).images())",
        "floor = self.frechet_distance(at_random(self.test_set, num_images).images())",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "pairs never seen are counted apart",
        '"never seen" if (digit, ink) in NEVER_SEEN else "seen"',
        '"seen" if (digit, ink) in NEVER_SEEN else "never seen"',
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the report names the sampling",
        '"sampling": sampling,',
        '"sampling": {},',
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the picture shows the nearest training images",
        "judge.train_set.images(nearest_images(images, judge.train_set)[1])",
        "judge.train_set.images(slice(len(images)))",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "the interval is Wilson's",
        'method="wilson"',
        'method="exact"',
    ),
    Mistake(
        "scoring",
        "lesson_17/evaluate_mnist.py",
        "the decoder's accuracy is of each image's own digit",
        "decoded = map_in_chunks(decode, image_embed, encodings,",
        "decoded = map_in_chunks(decode, image_embed.flip(0), encodings,",
    ),
    Mistake(
        "scoring",
        "lesson_17/evaluate_mnist.py",
        "the loss is of the timesteps it names",
        "torch.randint(low, high + 1,",
        "torch.randint(1, decoder.diffusion.num_timesteps + 1,",
    ),
    Mistake(
        "scoring",
        "lesson_17/evaluate_mnist.py",
        "the nearest image is chosen of ten",
        "ten = min(10, len(test_set))",
        "ten = min(2, len(test_set))",
    ),
    Mistake(
        "scoring",
        "lesson_08/evaluate_mnist.py",
        "the transformer is measured on the test images' own tokens",
        "zip(captions.split(500), image_tokens.split(500))",
        "zip(captions.split(500), image_tokens.flip(0).split(500))",
    ),
    Mistake(
        "scoring",
        "utils/scoring.py",
        "RMS is a root of a mean",
        "return best / math.sqrt(flat.shape[1]), index",
        "return best, index",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "the KL has its weight",
        "loss = nll + kl_weight * self.config.beta * tokens_per_value * kl",
        "loss = nll + self.config.beta * tokens_per_value * kl",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "beta has its effect",
        "loss = nll + kl_weight * self.config.beta * tokens_per_value * kl",
        "loss = nll + kl_weight * tokens_per_value * kl",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "tau has its effect",
        "F.gumbel_softmax(logits, tau=tau, dim=1)",
        "F.gumbel_softmax(logits, dim=1)",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "the KL is to a uniform prior",
        "(log_q.exp() * (log_q + math.log(logits.shape[1]))).sum(dim=1)",
        "(log_q.exp() * log_q).sum(dim=1)",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "tau ends at a sixteenth",
        "return cosine(1.0, 1 / 16, progress / 0.8)",
        "return cosine(1.0, 1 / 8, progress / 0.8)",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "pixels come back from their range",
        "((x - PIXEL_EPS) / (1 - 2 * PIXEL_EPS))",
        "(x - PIXEL_EPS)",
    ),
    Mistake(
        "models",
        "lesson_08/dvae.py",
        "the likelihood has its Jacobian",
        "+ math.log(2) + torch.log(x * (1 - x))",
        "+ math.log(2)",
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "the row mask reaches back to the position above",
        '"row": distance <= grid_size',
        '"row": distance < grid_size',
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "the last layer has the convolutional mask",
        '+ ["conv"]',
        '+ ["row"]',
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "every fourth layer, the second first, has the column mask",
        "if layer % 4 == 1",
        "if layer % 4 == 2",
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "text and image are weighed 1 to 7",
        "weight * text_loss + (1 - weight) * image_loss",
        "weight * image_loss + (1 - weight) * text_loss",
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "each text position has a pad of its own",
        "self.config.text_vocab_size + torch.arange(self.config.text_seq_len, device=text_tokens.device)",
        "self.config.text_vocab_size + 0 * torch.arange(self.config.text_seq_len, device=text_tokens.device)",
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "corruption does not change what is predicted",
        "F.cross_entropy(image_logits.transpose(1, 2), image_tokens)",
        "F.cross_entropy(image_logits.transpose(1, 2), context)",
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "captions are dropped in training only",
        "        if self.training:\n            dropped",
        "        if True:\n            dropped",
    ),
    Mistake(
        "models",
        "lesson_08/dall_e.py",
        "an image token knows its column",
        "+ self.embed_row(row) + self.embed_column(column)",
        "+ self.embed_row(row)",
    ),
    Mistake(
        "models",
        "lesson_17/clip.py",
        "the scale is limited",
        "self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))",
        "pass",
    ),
    Mistake(
        "models",
        "lesson_17/clip.py",
        "the loss is both ways",
        "(F.cross_entropy(logits, captions_of_image) + F.cross_entropy(logits.T, images_of_caption)) / 2",
        "F.cross_entropy(logits, captions_of_image)",
    ),
    Mistake(
        "models",
        "lesson_17/clip.py",
        "every valid caption is right",
        "for ids in caption_ids.T:",
        "for ids in caption_ids.T[:1]:",
    ),
    Mistake(
        "models",
        "lesson_17/clip.py",
        "text attention is causal",
        "dtype=torch.bool).tril()",
        "dtype=torch.bool)",
    ),
    Mistake(
        "models",
        "lesson_17/clip.py",
        "the feature is that of the end of the text",
        "encodings[torch.arange(len(x), device=x.device), end]",
        "encodings[:, -1]",
    ),
    Mistake(
        "models",
        "lesson_17/clip.py",
        "images are seen from -1 to 1",
        "self.image_encoder(2 * images - 1)",
        "self.image_encoder(images)",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "v is a eps - b x_0",
        '"v": a_t * eps - b_t * x_0',
        '"v": a_t * eps + b_t * x_0',
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "fresh noise takes the place of predicted noise",
        "(b_s**2 - sigma**2).clamp(min=0).sqrt() * eps",
        "b_s * eps",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "eta adds noise",
        "sigma = eta * b_s / b_t",
        "sigma = 0 * b_s / b_t",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "clamping x_0 changes eps",
        "            eps = (x_t - a_t * x_0) / b_t\n",
        "",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "training sees every timestep but 0",
        "torch.randint(1, self.num_timesteps + 1,",
        "torch.randint(0, self.num_timesteps,",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "guidance exaggerates the condition",
        "return unconditional + guidance_scale * (predict(True) - unconditional)",
        "return unconditional + (guidance_scale - 1) * (predict(True) - unconditional)",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "a fraction of the conditions is dropped",
        "dropped = torch.rand(len(condition), device=condition.device) < probability",
        "dropped = torch.rand(len(condition), device=condition.device) > probability",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "DDIM is told T + 1 timesteps at most",
        "min(num_steps, self.num_timesteps) + 1",
        "num_steps + 1",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_prior.py",
        "the prior predicts at its query",
        "self.to_image_embed(self.norm(x[:, -1]))",
        "self.to_image_embed(self.norm(x[:, -2]))",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_prior.py",
        "embeddings come back at length 1",
        "return nn.functional.normalize(x * self.embed_std + self.embed_mean, dim=-1)",
        "return x * self.embed_std + self.embed_mean",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_prior.py",
        "the prior is causal",
        'dtype=torch.bool).tril(), persistent=False)\n        self.register_buffer("embed_mean"',
        'dtype=torch.bool), persistent=False)\n        self.register_buffer("embed_mean"',
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "the image embedding is in the time embedding",
        " + self.image_to_time(image_embed)",
        " + 0 * self.image_to_time(image_embed)",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "the caption is in the context",
        "torch.cat([image_tokens, self.encodings_to_tokens(text_encodings)], dim=1)",
        "torch.cat([image_tokens, 0 * self.encodings_to_tokens(text_encodings)], dim=1)",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "captions and embeddings are dropped as often as they say",
        "(c.image_dropout, c.caption_dropout) if self.training",
        "(c.caption_dropout, c.image_dropout) if self.training",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "the caption is in the time embedding",
        " + self.caption_to_time(text_encodings[:, -1])",
        " + 0 * self.caption_to_time(text_encodings[:, -1])",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "the caption's last position is in the time embedding",
        "self.caption_to_time(text_encodings[:, -1])",
        "self.caption_to_time(text_encodings[:, 0])",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "noise on the embedding has the length that it says",
        "c.image_noise * c.clip_embed_dim**-0.5 * torch.randn_like(image_embed)",
        "c.image_noise * torch.randn_like(image_embed)",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion_decoder.py",
        "embeddings are noised in training only",
        "        if self.training:  # an embedding",
        "        if True:  # an embedding",
    ),
    Mistake(
        "models",
        "lesson_17/diffusion.py",
        "noisy timesteps are logit-normal",
        "torch.sigmoid(0.5 + 1.2 * normal)",
        "torch.sigmoid(0.5 + normal)",
    ),
    Mistake(
        "training",
        "lesson_17/train_decoder.py",
        "the decoder learns more of noisy timesteps",
        "if config.noisy_timesteps else None",
        "if False else None",
    ),
    Mistake(
        "edits",
        "lesson_17/edit_mnist.py",
        "--guidance_scale guides text differences",
        "turned, x_T, args.sampling_steps, args.guidance_scale)",
        "turned, x_T, args.sampling_steps)",
    ),
    Mistake(
        "training",
        "lesson_08/train_dvae.py",
        "Muon trains the dVAE's filters",
        "make_optimizers(dvae, training, dvae.blocks)",
        "make_optimizers(dvae, training)",
    ),
    Mistake(
        "training",
        "lesson_17/train_decoder.py",
        "Muon trains the decoder's filters",
        "make_optimizers(decoder, training, decoder.unet.blocks)",
        "make_optimizers(decoder, training)",
    ),
    Mistake(
        "models",
        "lesson_17/unet.py",
        "the time scales and shifts",
        "h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))",
        "h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale)))",
    ),
    Mistake(
        "models",
        "utils/bpe.py",
        "T is what captions need with dropout",
        "min(MOST_TOKENS, max(map(len, plain + rows)))",
        "min(MOST_TOKENS, max(map(len, plain)))",
    ),
    Mistake(
        "models",
        "utils/bpe.py",
        "one letter in two spellings is one",
        "normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])",
        "normalizers.Lowercase()",
    ),
    Mistake(
        "models",
        "utils/bpe.py",
        "dropout skips merges",
        "if rng.random() >= dropout]",
        "if True]",
    ),
    Mistake(
        "models",
        "utils/bpe.py",
        "a cut that is too long gives way to the caption's own",
        "rows = [row if len(row) <= self.text_seq_len else plain[i // num_draws]",
        "rows = [row if True else plain[i // num_draws]",
    ),
    Mistake(
        "models",
        "lesson_17/frozen_clip.py",
        "a caption as long as T has its end",
        "add_end(tokenizer.encode(prompts, text_seq_len - 1, pad_id), pad_id)",
        "tokenizer.encode(prompts, text_seq_len, pad_id)",
    ),
    Mistake(
        "training",
        "utils/training.py",
        "the learning rate warms up",
        "warm = min(1.0, (step + 1) / (training.warmup_steps + 1))",
        "warm = 1.0",
    ),
    Mistake(
        "training",
        "utils/training.py",
        "the learning rate falls to 0",
        "step / training.num_training_steps)",
        "step / (2 * training.num_training_steps))",
    ),
    Mistake(
        "training",
        "utils/training.py",
        "each epoch has an order of its own",
        "manual_seed(hash((seed, epoch)) % 2**32)",
        "manual_seed(seed)",
    ),
    Mistake(
        "training",
        "utils/training.py",
        "the order follows the seed",
        "manual_seed(hash((seed, epoch)) % 2**32)",
        "manual_seed(epoch)",
    ),
    Mistake(
        "training",
        "utils/training.py",
        "the first weights follow the seed",
        "    torch.manual_seed(training.seed)\n",
        "",
    ),
    Mistake(
        "training",
        "utils/training.py",
        "what does not fit into the memory is refused",
        "    if needed > memory:\n",
        "    if False:\n",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "gradients are clipped",
        "nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)",
        "nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "weights are averaged",
        "            self.averaged.update_parameters(self.model)\n",
        "            pass\n",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "gradients do not add up over steps",
        "            optimizer.zero_grad()\n",
        "",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "the last step is saved and shown",
        "return self.step % every == 0 or self.step == self.training.num_training_steps",
        "return self.step % every == 0",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "a body without update is refused",
        "                if self.step == step:\n",
        "                if False:\n",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "a learner's missing file is no disk problem",
        "if isinstance(error, OSError) and machine.concerns(error, self.folder):",
        "if isinstance(error, OSError):",
    ),
    Mistake(
        "training",
        "utils/run.py",
        "metrics are of their own step",
        'row = {"step": self.step, "learning_rate"',
        'row = {"step": self.step - 1, "learning_rate"',
    ),
    Mistake(
        "training",
        "utils/optimizers.py",
        "biases do not decay",
        '[p for p in others if p.ndim <= 1], "weight_decay": 0.0}',
        '[p for p in others if p.ndim <= 1], "weight_decay": training.weight_decay}',
    ),
    Mistake(
        "training",
        "utils/optimizers.py",
        "matrices decay",
        '"weight_decay": training.weight_decay},',
        '"weight_decay": 0.0},',
    ),
    Mistake(
        "training",
        "utils/optimizers.py",
        "Muon's momentum is Nesterov's",
        "direction = (parameter.grad * (1 - mu) + momentum * mu).flatten(1)",
        "direction = momentum.flatten(1)",
    ),
    Mistake(
        "training",
        "utils/optimizers.py",
        "Muon's steps have AdamW's size",
        "0.2 * math.sqrt(max(direction.shape))",
        "0.2 * math.sqrt(min(direction.shape))",
    ),
    Mistake(
        "training",
        "lesson_08/train_mnist.py",
        "Muon trains the transformer's matrices",
        "make_optimizers(dall_e, training, dall_e.blocks)",
        "make_optimizers(dall_e, training)",
    ),
    Mistake(
        "training",
        "lesson_08/train_dvae.py",
        "tau and the KL's weight follow the progress",
        "progress = step / training.num_training_steps",
        "progress = 0.0",
    ),
    Mistake(
        "training",
        "lesson_08/train_mnist.py",
        "each image is learned with its own caption",
        "captions.draw(train_set.draw_captions(index))",
        "captions.draw(train_set.draw_captions(index.roll(1)))",
    ),
    Mistake(
        "training",
        "lesson_17/train_clip.py",
        "each image is learned with its own caption",
        "caption = train_set.draw_captions(index)",
        "caption = train_set.draw_captions(index.roll(1))",
    ),
    Mistake(
        "training",
        "lesson_17/train_prior.py",
        "each embedding is learned with its own caption",
        "captions[train_set.draw_captions(index)]",
        "captions[train_set.draw_captions(index.roll(1))]",
    ),
    Mistake(
        "training",
        "lesson_17/train_decoder.py",
        "each image is learned with its own embedding",
        "x_0, image_embed[index], text_encodings, t=t)",
        "x_0, image_embed[index.roll(1)], text_encodings, t=t)",
    ),
    Mistake(
        "training",
        "lesson_17/train_clip.py",
        "the scale is limited after each update",
        "            clip.clip_logit_scale()\n",
        "",
    ),
    Mistake(
        "training",
        "lesson_17/train_prior.py",
        "the prior learns scaled embeddings",
        "scaled = prior.scale(embedded.image_embed)",
        "scaled = embedded.image_embed",
    ),
    Mistake(
        "data",
        "utils/data.py",
        "every valid caption is drawn",
        "which = torch.rand(len(ids), device=ids.device) * (ids >= 0).sum(dim=1)",
        "which = torch.zeros(len(ids), device=ids.device)",
    ),
    Mistake(
        "data",
        "utils/data.py",
        "pixels are from 0 to 1",
        ".float() / 255",
        ".float() / 256",
    ),
    Mistake(
        "data",
        "utils/data.py",
        "a subset's captions are those of its images",
        "renumbered[used] = torch.arange(len(used), device=self.device)",
        "renumbered[used] = used",
    ),
    Mistake(
        "data",
        "utils/datasets/mnist.py",
        "a digit's captions are its own",
        "captions = torch.arange(20).view(2, 10).T",
        "captions = torch.arange(20).view(10, 2)",
    ),
    Mistake(
        "data",
        "utils/datasets/mnist.py",
        "the embedded digits' test images are no training images",
        "of_digit[:, 450:].flatten())",
        "of_digit[:, :50].flatten())",
    ),
    Mistake(
        "data",
        "utils/datasets/mnist.py",
        "a broken file is named",
        "if pixels.shape != (len(labels), 28, 28) or",
        "if",
    ),
    Mistake(
        "data",
        "utils/datasets/mnist.py",
        "a data set of digits is closed to other prompts",
        "captions[labels], closed=True)",
        "captions[labels])",
    ),
    Mistake(
        "data",
        "utils/datasets/mnist.py",
        "another size than 28 is refused",
        "if source.image_size not in (None, 28):",
        "if False:",
    ),
    Mistake(
        "data",
        "utils/datasets/colored_mnist.py",
        "pairs never seen are not in training",
        "chances[never_seen[labels]] *= split",
        "pass",
    ),
    Mistake(
        "data",
        "utils/datasets/colored_mnist.py",
        "pairs never seen are among the test images",
        "chances[never_seen[labels]] *= split",
        "chances[never_seen[labels]] = 0",
    ),
    Mistake(
        "data",
        "utils/datasets/colored_mnist.py",
        "thick is the third with the most ink of its digit",
        "(amounts[split] > high[labels])  #",
        "(amounts[split] > high.mean())  #",
    ),
    Mistake(
        "data",
        "utils/datasets/colored_mnist.py",
        "the ink is the one that the caption names",
        "said = captions_in_color(digit, list(INKS)[i],",
        "said = captions_in_color(digit, list(INKS)[i - 1],",
    ),
    Mistake(
        "data",
        "utils/datasets/__init__.py",
        "a folder is kept with its whole path",
        "str(Path(source.dataset).resolve())",
        "source.dataset",
    ),
    Mistake(
        "data",
        "utils/datasets/__init__.py",
        "where MNIST cannot be had the embedded digits serve",
        "source.dataset or mnist.mnist_or_5k(data_dir)",
        'source.dataset or "mnist"',
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "a number that was given is taken",
        "if given.get(f.name) is not None})",
        "if given.get(f.name)})",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "--preset is taken",
        "[with_given(presets[args.preset]) for presets in pair]",
        '[with_given(presets["small"]) for presets in pair]',
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "numbers out of range are refused",
        'if not low <= value <= high or value == float("inf"):',
        "if False:",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "a mistake ends with 2",
        "    print(message, file=sys.stderr)\n    sys.exit(2)\n\n\ndef shortened",
        "    print(message, file=sys.stderr)\n    sys.exit(0)\n\n\ndef shortened",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "a flag is not guessed from its beginning",
        "allow_abbrev=False, ",
        "",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "a config that does not work is one sentence",
        "raise UserError(str(error)) from error",
        "raise",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "too little memory is one sentence",
        '"tried to allocate" not in str(error).lower()',
        "True",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "--help shows the preset's numbers",
        'preset = asked[1] if asked else "small"',
        'preset = "small"',
    ),
    Mistake(
        "command lines",
        "utils/checkpoints.py",
        "a checkpoint of another model is refused",
        'if name and checkpoint["name"] != name:',
        "if False:",
    ),
    Mistake(
        "command lines",
        "utils/checkpoints.py",
        "code in a file is not run",
        "weights_only=True",
        "weights_only=False",
    ),
    Mistake(
        "command lines",
        "utils/checkpoints.py",
        "a checkpoint of another version is refused",
        "if missing := CONTENTS - checkpoint.keys():",
        "if False and (missing := CONTENTS - checkpoint.keys()):",
    ),
    Mistake(
        "command lines",
        "utils/checkpoints.py",
        "--pretrained and named models exclude each other",
        "if pretrained and (models or any(given.values())):",
        "if False:",
    ),
    Mistake(
        "processes",
        "utils/run.py",
        "different data in two processes are refused",
        "if len(set(gathered(num_images))) > 1:",
        "if False:",
    ),
    Mistake(
        "processes",
        "utils/run.py",
        "a batch that does not divide is refused",
        "if self.training.batch_size % parts:",
        "if False:",
    ),
    Mistake(
        "processes",
        "utils/training.py",
        "each process has a part of the batch of its own",
        ".chunk(num_processes())[process_index()]",
        ".chunk(num_processes())[0]",
    ),
    Mistake(
        "processes",
        "utils/training.py",
        "gradients are the processes' mean",
        "(flat / num_processes()).split",
        "flat.split",
    ),
    Mistake(
        "processes",
        "utils/run.py",
        "each process has noise of its own",
        "hash((t.seed, step, machine.process_index()))",
        "hash((t.seed, step, 0))",
    ),
    Mistake(
        "processes",
        "utils/run.py",
        "one process writes the files",
        "        if self.is_main:\n            ema = ",
        "        if True:\n            ema = ",
    ),
    Mistake(
        "processes",
        "lesson_17/clip.py",
        "CLIP compares the images of all processes",
        "if torch.distributed.is_initialized():",
        "if False:",
    ),
    Mistake(
        "processes",
        "utils/run.py",
        "the others wait for the checkpoint",
        "        gathered(self.step)  # the others",
        "        # the others",
    ),
    Mistake(
        "rooms",
        "utils/board.py",
        "each step is written once",
        "                if step > self.last_step[kind]:\n",
        "                if True:\n",
    ),
    Mistake(
        "rooms",
        "utils/board.py",
        "half a grid is shown when it is whole",
        "                break  # it is still being written",
        "                pass",
    ),
    Mistake(
        "rooms",
        "utils/export.py",
        "the exported weights are the averaged ones",
        "for name, tensor in weights_of(checkpoint).items()}",
        'for name, tensor in checkpoint["model"].items()}',
    ),
    Mistake(
        "rooms",
        "utils/export.py",
        "models that learned from another know its rounded weights",
        'source | exported.get(source["fingerprint"], {})',
        "source",
    ),
    Mistake(
        "rooms",
        "lesson_17/pretrained_clip.py",
        "OpenAI's pixels are ours",
        "patches / (2 * std[:, None, None])",
        "patches / std[:, None, None]",
    ),
    Mistake(
        "rooms",
        "lesson_17/pretrained_clip.py",
        "their mean is made up for",
        'positions[1:] += torch.einsum("dcij,c->d", patches, (0.5 - mean) / std)',
        "pass",
    ),
    Mistake(
        "rooms",
        "lesson_17/pretrained_clip.py",
        "queries, keys and values are in order",
        'for which in "qkv"]',
        'for which in "kqv"]',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a split one level down is one too",
        "for part in Path(name).parts[:-1])",
        "for part in Path(name).parts[:1])",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a caption with commas needs no quotes",
        'rows.append({**row, last: delimiter.join([row[last] or "", *further])})',
        "rows.append(row)",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a line that may mean two things is left out",
        "if further and delimiter in row[last]:",
        "if False:",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a quote that is not closed is refused",
        "delimiter=delimiter, strict=True), [], 1",
        "delimiter=delimiter), [], 1",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a blank may stand before a quote",
        "text = re.sub(rf'^([^\"\\n]*{delimiter}) +\"', r'\\1\"', text, flags=re.MULTILINE)",
        "pass",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a name that may mean several images means none",
        "in_reach.pop() if len(in_reach) == 1 else exact",
        "in_reach.pop() if in_reach else exact",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "small and large letters of a name are one",
        'plain(name.replace("\\\\", "/"))',
        'meant = name.replace("\\\\", "/")',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "a name may lack its ending",
        '            ends[end.rpartition(".")[0]].add(path)\n',
        "",
    ),
    Mistake("own images", "utils/datasets/own_images.py", "lines of a Mac are lines", '.replace(b"\\r", b"\\n")', ""),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "half an emoji is a question mark",
        'printable(f"{text}").split()',
        'f"{text}".split()',
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "images are decoded a few at a time",
        "islice(remaining, AT_A_TIME)",
        "islice(remaining, 10**9)",
    ),
    Mistake(
        "own images",
        "utils/datasets/own_images.py",
        "older decodings are deleted",
        'if older.name.startswith(f"{name}-") and older != decoded:',
        "if False:",
    ),
    Mistake(
        "own images",
        "utils/datasets/__init__.py",
        "a misspelled name of ours gets its advice",
        "if meant != source.dataset and meant in LOADERS",
        "if False and meant in LOADERS",
    ),
    Mistake(
        "resume", "utils/prompts.py", "images that were changed are noticed", '"pixels": train_set.pixels[some], ', ""
    ),
    Mistake(
        "resume",
        "utils/checkpoints.py",
        "a new field of the config had its default",
        '"config": {**defaults, **checkpoint["config"]}}',
        '"config": checkpoint["config"]}',
    ),
    Mistake(
        "resume",
        "utils/run.py",
        "metrics before a break are kept",
        "                self.write_metrics()  # of a loop that was left with break",
        "                pass",
    ),
    Mistake(
        "resume",
        "utils/machine.py",
        "a closed terminal saves",
        "caught.append(signal.SIGHUP)  # which",
        "pass  # which",
    ),
    Mistake(
        "resume",
        "utils/machine.py",
        "nohup keeps a run going",
        "signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN",
        "True",
    ),
    Mistake(
        "drawing", "utils/samples.py", "images are written as they are drawn", "AT_A_TIME = 128", "AT_A_TIME = 10**9"
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "an earlier drawing's images are deleted",
        'for row in [] if first else read_rows(folder / "samples.csv"):',
        "for row in []:",
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "files that were not drawn here stay",
        'if re.fullmatch(r"\\d{4,}-[^/\\\\]*\\.png", row.get("file") or ""):',
        'if row.get("file"):',
    ),
    Mistake(
        "drawing",
        "utils/samples.py",
        "prompts that are cut are named",
        "        if (beginning := read(prompt)) != prompt:",
        "        if (beginning := read(prompt)) and False:",
    ),
    Mistake(
        "drawing", "utils/prompts.py", "words have no punctuation", "word.strip(MARKS) for word in", "word for word in"
    ),
    Mistake(
        "drawing",
        "utils/prompts.py",
        "half a letter in a prompt is refused",
        'if any("\\ud800" <= letter',
        'if False and any("\\ud800" <= letter',
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "any console can show any letter",
        'stream.reconfigure(errors="replace")',
        "pass",
    ),
    Mistake(
        "command lines",
        "utils/cli.py",
        "a folder that cannot be written is refused first",
        "if not there.is_dir() or not os.access(there, os.W_OK):",
        "if False:",
    ),
    Mistake(
        "models", "utils/bpe.py", "a long word is cut", 'LONGEST_WORD = r"\\S{32}"', 'LONGEST_WORD = r"\\S{9999999}"'
    ),
    Mistake(
        "own images", "lesson_17/diffusion_prior.py", "embeddings all alike have a scale", ".clamp(min=MIN_STD))", ")"
    ),
]


if __name__ == "__main__":
    main()
