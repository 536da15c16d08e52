"""The order of the package: a folder imports only folders above it in ORDER, and no file is in a circle. Its words."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

import fsrepl

ORDER = ("errors", "temporary", "settings", "model", "s3", "remote", "link", "storage", "region", "views", "capture",
         "replicate", "repair", "lifecycle", "daemon", "commands", "console", "cli")  # fmt: skip
STEPS = {"capture", "replicate", "repair", "lifecycle"}
"""They do not know one another."""

PARTS = {
    "captures": "capture", "scan_times": "capture", "views": "views", "replicas": "replicate", "backfills": "replicate",
    "lifecycle": "lifecycle", "scrub": "repair", "attachment": "daemon",
}  # fmt: skip
"""The parts of a bucket's state, and the folder that changes each."""
CHANGES = {"add", "append", "clear", "discard", "extend", "pop", "popitem", "remove", "setdefault", "update"}

LONG = {"storage/fs.py", "commands/doctor.py"}
"""One idea each, in many short and equal parts: a method for each system call, and the findings of the doctor."""
LINES_MAX, WORDS_MAX = 520, 20
RIDDLES = re.compile(
    r"(It|They|This|That|These|Those|What|Who|Whoever|Nobody|So (many|much|often|long|few)|The same)\b"
)

PACKAGE = Path(fsrepl.__file__).parent
CODE = PACKAGE.parent / "docs" / "reference" / "code.md"
WAY = (PACKAGE.parent / "README.md").read_text().partition("## Finding one's way")[2].partition("\n## ")[0]
Trees = dict[str, ast.Module]


@pytest.fixture(scope="module")
def trees() -> Trees:
    """The files of the package by their names in imports, parsed once, by the process that runs these tests."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_bytes()
        )
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.stem in ORDER
    }


@pytest.fixture(scope="module")
def graph(trees: Trees) -> dict[str, set[str]]:
    return {name: imports(tree, trees) for name, tree in trees.items()}


def imports(tree: ast.AST, trees: Trees) -> set[str]:
    """The files of the package that are imported anywhere in a tree."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in trees else str(node.module) for name in names}
    return found & trees.keys()


def test_a_folder_imports_what_stands_above_it(graph: dict[str, set[str]]) -> None:
    """Architecture: no import goes down the order, nor from one step to another."""
    arrows = [(name, other) for name, others in graph.items() for other in others]
    folders = {arrow: (arrow[0].split(".")[1], arrow[1].split(".")[1]) for arrow in arrows}
    wrong = [
        f"{arrow[0]} -> {arrow[1]}"
        for arrow, (here, there) in folders.items()
        if ORDER.index(there) > ORDER.index(here) or (here != there and {here, there} <= STEPS)
    ]
    assert wrong == []


def test_no_circle_of_files(graph: dict[str, set[str]]) -> None:
    """Architecture: the files can be read one after the other, each after all its imports."""
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_imports_stand_at_the_top(trees: Trees) -> None:
    """Architecture: none is hidden from a circle in a function or for types only. What `fsrepl` imports when a command
    is called is for a fast start.
    """
    hidden = [
        f"{name}:{node.lineno}"
        for name, tree in trees.items()
        if not name.startswith("fsrepl.cli")
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If)) and imports(node, trees)
    ]
    assert hidden == []


def changed_parts(tree: ast.AST) -> set[str]:
    """The parts of a bucket's state of which a file changes a field itself, and not by a method of the part."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.Delete)):
            found += [each for target in node.targets for each in getattr(target, "elts", [target])]
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            found.append(node.target)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            found.append(node.func.value)
    texts = [ast.unparse(each) for each in found]
    return {part for text in texts for part in re.findall(r"\bstate_?\.(\w+)\.", text) if part in PARTS}


def test_one_folder_changes_each_part_of_a_buckets_state(trees: Trees) -> None:
    """Architecture: of the state of a bucket a step changes its own part; for others it calls their methods."""
    made = {(part, name.split(".")[1]) for name, tree in trees.items() for part in changed_parts(tree)}
    assert {(part, folder) for part, folder in made if folder not in (PARTS[part], "region")} == set()
    assert {part for part, folder in made if folder == PARTS[part]} == PARTS.keys()


def test_the_map_in_the_docs_is_the_tree() -> None:
    """docs/reference/code.md: all folders, in the order of their imports, and no file that is not there."""
    section = CODE.read_text()
    tops, missing = [], []
    for indent, entry in re.findall(r"^    ( *)(\w\S*(?:, \w\S*)*)  ", section, re.MULTILINE):
        for name in entry.split(", "):
            if not indent:
                tops.append(name)
            path = PACKAGE / name if not indent else PACKAGE / tops[-1] / name
            missing += [] if path.exists() else [str(path)]
    assert missing == []
    assert tuple(name.rstrip("/").removesuffix(".py") for name in tops) == ORDER


def test_the_map_in_the_readme_is_the_tree() -> None:
    """README, Finding one's way: all folders, in the order of their imports."""
    named = re.findall(r"`(\w+)`", WAY.partition("| word |")[0])
    assert tuple(name for name in named if name != "fsrepl") == ORDER


def test_only_lists_of_equal_parts_are_long() -> None:
    """Architecture: a file has one idea, and what is long without being a list of equal parts has two."""
    lines = {path.relative_to(PACKAGE).as_posix(): path.read_bytes().count(b"\n") for path in PACKAGE.rglob("*.py")}
    assert {name for name, number in lines.items() if number > LINES_MAX} <= LONG


def test_the_tests_have_the_folders_of_the_package() -> None:
    """CONTRIBUTING: `tests/` has the same folders, and two for all of it together."""
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders - {"journeys", "attack"} <= set(ORDER)


def test_the_glossary_is_short() -> None:
    """README, Finding one's way: a reader learns 20 words at most, beside those of S3."""
    words = re.findall(r"\| (\w+) \| (?=[A-Z])", WAY)
    assert len(set(words)) == len(words) <= WORDS_MAX
    assert {"version", "delivery", "view"} <= set(words)


def test_docstrings_name_their_subject(trees: Trees) -> None:
    """Architecture: none begins with a word that stands for something that is named elsewhere."""
    texts = [
        (f"{name}:{text.lineno}", text.value)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        for statement in (node.body if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) else ())
        if isinstance(statement, ast.Expr) and isinstance(text := statement.value, ast.Constant)
    ]
    assert len(texts) > 3000
    assert [(where, text) for where, text in texts if isinstance(text, str) and RIDDLES.match(text)] == []
