"""The core stands alone: it imports nothing of the rooms around it, which can be taken away, one or all of them."""

import ast
import re

import pytest
from core import FOLDERS, ROOT, SCRIPTS, broken_rules, closure, graph, product_files
from core_scripts import QUICK, run_core_scripts
from rooms import OF_THE_HOUSE, ROOMS, copy_without, run_core_tests
from scripts import Forked

OF_ROOMS = set(sum(ROOMS.values(), []))
FOUND_BY_NAME = [room for room, files in ROOMS.items() if any(file.startswith("utils/datasets/") for file in files)]


def test_no_file_breaks_the_rules_of_the_house():
    assert broken_rules(graph()) == []


def test_the_rules_are_noticed_when_they_are_broken():
    imports = {
        "lesson_08/a.py": {"lesson_17/b.py": {"lesson_17.b"}},
        "lesson_17/b.py": {"utils/c.py": {"c", "utils.c"}},
    }
    imports["utils/c.py"] = {"lesson_17/b.py": {"lesson_17.b"}}
    other, circle, twice = broken_rules(imports)
    assert "of the other lesson" in other and "import each other" in circle and "under the names" in twice


def test_the_core_imports_nothing_of_a_room():
    core = closure(SCRIPTS, graph())
    assert core.isdisjoint(OF_ROOMS)
    assert {"utils/run.py", "lesson_17/clip.py", "lesson_08/dall_e.py", "utils/datasets/mnist.py"} <= core


def test_each_file_of_the_product_is_the_cores_or_one_rooms():
    shared = {"utils/drawn_images.py"}  # of the two rooms that read drawn images
    found = {file for file in product_files() if file.startswith("utils/datasets/")}  # a learner's own among them
    listed = [file for files in ROOMS.values() for file in files]
    assert len(listed) == len(set(listed))
    of_rooms = {f for f in listed if f.split("/")[0] in FOLDERS and f.endswith(".py")}
    assert set(product_files()) - found == (closure(SCRIPTS, graph()) | of_rooms | shared) - found


def test_no_test_of_the_core_needs_a_room():
    modules = {file.removesuffix(".py").replace("/", ".") for file in OF_ROOMS if file.endswith(".py")}
    modules |= {name.removeprefix("tests.") for name in modules}
    for path in sorted((ROOT / "tests").glob("*.py")):
        if f"tests/{path.name}" in OF_ROOMS | set(OF_THE_HOUSE):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert modules.isdisjoint(names), f"{path.name} imports {modules & set(names)}"


def test_the_readme_names_the_files_of_each_room():
    text = (ROOT / "README.md").read_text()
    for room, files in ROOMS.items():
        for file in files:
            name = file.split("/")[-1]
            assert re.search(rf"`(\S*/)?{re.escape(name)}/?`", text), (room, file)


@pytest.mark.parametrize("room", FOUND_BY_NAME)
def test_the_core_runs_without(room, tmp_path):
    """Each room that the core finds by a file's name; of the others it imports nothing, as is tested above."""
    copy_without([room], tmp_path / "copy")
    result = Forked(run_core_scripts, tmp_path / "copy", QUICK).ended()
    assert result.returncode == 0, result.stderr


def test_the_core_runs_and_its_tests_are_found_without_all_rooms(tmp_path):
    """`python tests/rooms.py` runs these tests, too."""
    copy_without(ROOMS, tmp_path / "copy")
    result = Forked(run_core_scripts, tmp_path / "copy").ended()
    assert result.returncode == 0, result.stderr
    result = run_core_tests(tmp_path / "copy", "--collect-only")
    assert result.returncode == 0, result.stdout + result.stderr
