"""What the pages say is so: links lead somewhere, commands parse, code and names and numbers are those of the code."""

import json
import re
import runpy
import shlex
import sys
from dataclasses import fields

import pytest
from scripts import ROOT

from lesson_08.dall_e import DALL_E_PRESETS
from lesson_08.dvae import DVAE_PRESETS
from lesson_17.clip import CLIP_PRESETS
from lesson_17.diffusion_decoder import DECODER_PRESETS
from lesson_17.diffusion_prior import PRIOR_PRESETS
from lesson_17.diffusion_upsampler import UPSAMPLER_PRESETS
from utils.cli import ArgumentParser
from utils.tables import read_numbers

READMES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "utils/README.md",
    *sorted(ROOT.glob("lesson_*/README.md")),
    *sorted(ROOT.glob("lesson_*/measurements.md")),
    *sorted(ROOT.glob("lesson_*/exercises.md")),
]
MOST_LINES = {
    "lesson_08": 480,
    "lesson_17": 850,
}  # of a lesson's README.md; measurements.md has what was measured beyond it
LESSONS = sorted(ROOT.glob("lesson_*"))
MODELS = {
    "dvae": DVAE_PRESETS,
    "dall_e": DALL_E_PRESETS,
    "clip": CLIP_PRESETS,
    "prior": PRIOR_PRESETS,
    "decoder": DECODER_PRESETS,
    "upsampler": UPSAMPLER_PRESETS,
}


def pages(lesson):
    """The text of a lesson's README.md and measurements.md."""
    return "\n".join(
        (lesson / name).read_text() for name in ("README.md", "measurements.md") if (lesson / name).exists()
    )


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_and_anchors_resolve(readme):
    text = readme.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))
    assert links
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


class ParsedError(Exception):
    """The arguments were parsed, and that is all that was wanted."""


def commands(readme):
    text = readme.read_text()
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", without_blocks(text))
    for line in [*lines, *inline]:
        for part in line.split(" && "):
            match = re.match(r"(?:\.venv/bin/)?python ((?!tests/)\S*\.py.*)", part.strip())
            if match:
                yield match[1]


@pytest.mark.parametrize(
    "readme, command",
    [(readme, command) for readme in READMES for command in commands(readme)],
    ids=lambda value: value if isinstance(value, str) else str(value.relative_to(ROOT)),
)
def test_commands_parse(readme, command, monkeypatch):
    script, *arguments = shlex.split(command)
    path = next(path for path in (ROOT / script, readme.parent / script) if path.exists())
    assert path == ROOT / script or readme.parent.name not in MOST_LINES, "All commands are run at the root."
    original = ArgumentParser.parse_args

    def parse(self, *args):
        original(self, *args)
        raise ParsedError

    monkeypatch.setattr(ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(ParsedError):
        runpy.run_path(str(path), run_name="__main__")


def code_lines(path):
    return [line.strip() for line in path.read_text().splitlines()]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.name)
def test_code_blocks_are_the_code(lesson):
    files = [code_lines(path) for folder in (lesson, ROOT / "utils") for path in folder.glob("*.py")]
    found = blocks(pages(lesson), "python")
    assert found
    for block in found:
        lines = [line.strip() for line in block.strip().splitlines()]
        starts = [(file, i) for file in files for i, line in enumerate(file) if line == lines[0]]
        assert any(file[i : i + len(lines)] == lines for file, i in starts), (
            f"{lesson.name}'s pages show what is no code:\n{block}"
        )


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.name)
def test_every_name_exists(lesson):
    """Every `name()`, `Class.method` and `file.py` of the pages, in the lesson or in utils."""
    sources = [path.read_text() for folder in (lesson, ROOT / "utils") for path in folder.rglob("*.py")]
    spans = set(re.findall(r"`([^`\n]+)`", without_blocks(pages(lesson))))
    for span in spans:
        if match := re.fullmatch(r"(?:(\w+)\.)?(\w+)\(\)", span):
            owner, name = match.groups()
            definitions = [source for source in sources if re.search(rf"def {name}\(", source)]
            assert definitions, span
            assert owner is None or any(re.search(rf"class {owner}\b", source) for source in definitions), span
        elif re.fullmatch(r"[\w/]+\.py", span):
            assert any((folder / span).exists() for folder in (lesson, ROOT, ROOT / "utils")), span


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.name)
def test_figures_are_shown_and_small(lesson):
    text = pages(lesson) + (ROOT / "README.md").read_text()
    figures = [path for path in (lesson / "figures").iterdir() if path.suffix in (".png", ".gif")]
    for path in figures:
        assert f"figures/{path.name}" in text, path
    assert sum(path.stat().st_size for path in figures) < 3e6


def table_rows(text):
    """The cells of all tables, row by row."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("lesson, report", [("lesson_08", "dall_e"), ("lesson_17", "dall_e_2")])
def test_results_are_those_of_the_evaluation(lesson, report):
    measures = json.loads((ROOT / lesson / "figures" / f"{report}.json").read_text())["measures"]
    rows = table_rows(pages(ROOT / lesson))
    told = {name: {row[1] for row in rows if row[0] == name} for name in measures}
    assert told == {name: {row["text"]} for name, row in measures.items()}


def test_the_short_results_of_lesson_17_are_those_of_the_evaluation():
    """Rows of samples by default, unguided samples and real images; and the losses, where the curves are drawn from."""
    measures = json.loads((ROOT / "lesson_17/figures/dall_e_2.json").read_text())["measures"]
    rows = table_rows((ROOT / "lesson_17/README.md").read_text())
    for name, word in (("samples", "default settings"), ("unguided samples", "unguided:")):
        (told,) = [row[1:] for row in rows if len(row) == 5 and word in row[0]]
        accuracy = measures[f"{name}, prompt accuracy"]
        low, high = re.findall(r"([\d.]+)%", accuracy["note"].split("interval")[1])
        others = [
            measures[f"{name}, {what}"]["text"] for what in ("Fréchet distance", "diversity", "nearest training image")
        ]
        assert told == [f"{accuracy['text']} ({low} to {high})", *others]
    (real,) = [row[1:] for row in rows if row[0] == "real test images"]
    assert [real[0], real[3]] == [
        measures[f"{name}"]["text"] for name in ("scorer, accuracy", "real images, nearest training image")
    ]


def test_the_losses_of_lesson_17_are_those_of_the_curves():
    """Rows of a model, a step, a time, the loss, and the lowest and the highest of several seeds."""
    rows, model, seen = table_rows((ROOT / "lesson_17/README.md").read_text()), "", 0
    for row in rows:
        if len(row) == 6 and row[0] in ("", "CLIP", "prior", "decoder") and re.fullmatch(r"[\d,]+", row[1]):
            model, step = row[0] or model, int(row[1].replace(",", ""))
            expected = {int(one["step"]): one for one in read_numbers(ROOT / f"lesson_17/figures/{model.lower()}.csv")}
            if step in expected:
                one, told = expected[step], [float(row[3].split()[0]), *map(float, row[4].split(" to "))]
                assert told == pytest.approx([one["loss"], one["loss_low"], one["loss_high"]], abs=6e-4), row
                seen += 1
    assert seen == 9


def test_the_short_results_of_lesson_8_are_those_of_the_evaluation():
    """Rows of samples by default, plain samples and real images."""
    measures = json.loads((ROOT / "lesson_08/figures/dall_e.json").read_text())["measures"]
    columns = {"accuracy": "prompt accuracy", "Fréchet": "Fréchet distance", "nearest": "nearest training image"}
    rows = table_rows((ROOT / "lesson_08/README.md").read_text())
    real = {**measures, "real images, prompt accuracy": measures["scorer, accuracy"]}
    for word, measure in columns.items():
        (told,) = [row[1:] for row in rows if len(row) == 4 and word in row[0]]
        assert told == [real[f"{what}, {measure}"]["text"] for what in ("samples", "plain samples", "real images")]


@pytest.mark.parametrize("lesson", MOST_LINES)
def test_a_lesson_is_short(lesson):
    assert len((ROOT / lesson / "README.md").read_text().splitlines()) <= MOST_LINES[lesson]


TRAININGS = {
    "dvae": "lesson_08/train_dvae.py",
    "dall_e": "lesson_08/train_mnist.py",
    "clip": "lesson_17/train_clip.py",
    "prior": "lesson_17/train_prior.py",
    "decoder": "lesson_17/train_decoder.py",
    "upsampler": "lesson_17/train_upsampler.py",
}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.name)
def test_numbers_are_those_of_the_presets(lesson):
    """Rows like | `dvae.codebook_size` | 8,192 | 256 | 256 | the reason |: the paper's, the small and the large preset."""
    trainings = {kind: runpy.run_path(str(ROOT / file))["TRAINING"] for kind, file in TRAININGS.items()}
    rows = [row for row in table_rows(pages(lesson)) if re.fullmatch(r"`\w+\.(?!(?:py|ipynb)`)\w+`", row[0])]
    assert len(rows) > 10
    for name, *told in [row[:4] for row in rows]:
        kind, field = name.strip("`").split(".")
        of_model = field in {f.name for f in fields(MODELS[kind]["small"])}
        presets = MODELS[kind] if of_model else trainings[kind]
        values = [str(getattr(presets[preset], field)) for preset in ("paper", "small", "large")]
        assert [text.replace(",", "") for text in told] == [v.strip("()").replace(",", "") for v in values], name


def test_the_trainings_of_lesson_17_are_those_of_the_small_preset():
    """The table that has a column for each model."""
    rows = {row[0]: row[1:] for row in table_rows((ROOT / "lesson_17/README.md").read_text()) if len(row) == 4}
    fields_of = {
        "steps": "num_training_steps",
        "images in a step": "batch_size",
        "highest learning rate": "learning_rate",
        "decoupled weight decay, of matrices and convolutions": "weight_decay",
    }
    for i, kind in enumerate(("clip", "prior", "decoder")):
        training = runpy.run_path(str(ROOT / TRAININGS[kind]))["TRAINING"]["small"]
        for name, field in fields_of.items():
            assert float(rows[name][i].replace(",", "")) == getattr(training, field), (kind, name)


def test_the_trainings_of_lesson_8_are_those_of_the_small_preset():
    """Two rows of the table, and the paragraph below it."""
    text = (ROOT / "lesson_08/README.md").read_text()
    ours, prose = {row[0]: row[2] for row in table_rows(text) if len(row) == 3}, " ".join(text.split())
    dvae, dall_e = (runpy.run_path(str(ROOT / TRAININGS[kind]))["TRAINING"]["small"] for kind in ("dvae", "dall_e"))
    for row, training in (("dVAE's training", dvae), ("its training", dall_e)):
        steps, batch, rate = training.num_training_steps, training.batch_size, training.learning_rate
        assert ours[row].startswith(f"{steps:,} steps of {batch}, rate {rate}"), row
        assert f"rises linearly for {training.warmup_steps} steps" in prose, row
        assert f"clipped to a norm of {training.max_grad_norm:g}." in prose, row
    assert f"Weight decay, {dall_e.weight_decay} for the transformer and none for the dVAE" in prose
    assert dvae.weight_decay == 0


FAILURES = runpy.run_path(str(ROOT / "benchmarks" / "failures.py"))["FAILURES"]


@pytest.mark.parametrize("name", FAILURES)
def test_failures_can_be_reproduced(name):
    """The lines to break are in the code, and the README gives them, the commands, and the picture."""
    failure = FAILURES[name]
    text = pages(ROOT / failure.lesson)
    assert f"figures/failure_{name}.png" in text
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(text))]
    assert all(command in spans for command in failure.commands)
    for file, line, broken in failure.changes:
        assert (ROOT / failure.lesson / file).read_text().count(line) == 1
        assert line in spans and broken in spans
