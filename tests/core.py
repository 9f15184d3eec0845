"""How large the core is: `python tests/core.py` counts the lines of all files that the five core scripts import, directly or by
others, lazily or not, and says what breaks the rules of the house: a lesson that imports the other, files that import each
other in a circle, a module under two names."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    "lesson_08/train_dvae.py",
    "lesson_08/train_mnist.py",
    "lesson_08/generate_mnist.py",
    "lesson_17/train_mnist.py",
    "lesson_17/generate_mnist.py",
]
FOLDERS = ["lesson_08", "lesson_17", "utils"]


def product_files(root=ROOT):
    """The Python files of the lessons and of utils, as paths from the root."""
    return sorted(path.relative_to(root).as_posix() for folder in FOLDERS for path in (root / folder).rglob("*.py"))


def file_of(module, importer, files):
    """The file that a module name means in a file of the product, seen from the root or from that file's own folder."""
    for folder in ("", f"{Path(importer).parent.as_posix()}/"):
        path = folder + module.replace(".", "/")
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in files:
                return file
    return None


def imports_of(file, root=ROOT):
    """{file of the product: the names under which `file` imports it}, wherever in it."""
    files, found = set(product_files(root)), {}
    for node in ast.walk(ast.parse((root / file).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            target = file_of(name, file, files)
            if target not in (None, file):
                found.setdefault(target, set()).add(name)
    return found


def graph(root=ROOT):
    return {file: imports_of(file, root) for file in product_files(root)}


def closure(scripts, imports):
    """The files that scripts need, themselves included."""
    found, todo = set(), list(scripts)
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += imports[file]
    return found


def circles(imports):
    """The pairs of files that each need the other."""
    needs = {file: closure(imports[file], imports) for file in imports}
    return sorted((a, b) for a in imports for b in needs[a] if a < b and a in needs[b])


def broken_rules(imports):
    """What breaks the rules of the house, a sentence each."""
    across = [(a, b) for a in imports for b in imports[a] if {a[:9], b[:9]} == {"lesson_08", "lesson_17"}]
    names = {}
    for found in imports.values():
        for file, under in found.items():
            names.setdefault(file, set()).update(under)
    return [
        *(f"{a} imports {b}, of the other lesson." for a, b in across),
        *(f"{a} and {b} import each other." for a, b in circles(imports)),
        *(f"{file} is imported under the names {sorted(under)}." for file, under in names.items() if len(under) > 1),
    ]


def main():
    imports = graph()
    core = sorted(closure(SCRIPTS, imports))
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in core}
    for file in core:
        print(f"{lines[file]:5} {file}")
    print(f"{sum(lines.values()):5} lines in {len(core)} files")
    print("\n".join(broken_rules(imports)))


if __name__ == "__main__":
    main()
