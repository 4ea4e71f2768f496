"""Our style, executable: what a reviewer would otherwise have to say again and again."""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import median

from repository import ROOT, kept_files
from tidy_lists import (
    CATCHES_EVERYTHING,
    ENTRY_POINTS,
    HAS_LONG_LINES,
    LOADED_BY_NAME,
    READS_ENVIRONMENT,
    STARTS_TASKS,
    TALKS_TO_A_PERSON,
)

SOURCE = ROOT / "src" / "ironcart"
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()

MODULE_LINES_MAX = 400
MODULE_LINES_MEDIAN_MAX = 150
FUNCTION_LINES_MAX = 60
LINE_CHARACTERS_MAX = 100
POSITIONAL_PARAMETERS_MAX = 5
OPENING_LINES_MAX = 3

MODULE_NAMES_BANNED = {
    *("utils", "util", "helpers", "helper", "common", "manager", "base", "misc", "impl"),
    *("processor", "data", "info", "shared", "core"),
}
LEFTOVERS = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|HA" + r"CK)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.~*{}-])/(?:home|Users|root|work)/[\w.-]+")
PACKAGE_INDEXES = re.compile(
    r"(?<!emit-)(?:extra-)?index[-_]url|find-links"
    r"|https?://\S*(?:/simple\b|artifactory|nexus|pypi)",
    re.IGNORECASE,
)


@cache
def trees() -> Mapping[str, ast.Module]:
    """Every module of the package, parsed, by its path below src/ironcart."""
    return {
        path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text())
        for path in sorted(SOURCE.rglob("*.py"))
    }


@cache
def repository_files() -> tuple[Path, ...]:
    """The texts among the files that git does not ignore."""
    return tuple(path for path in kept_files() if b"\0" not in path.read_bytes()[:1024])


def python_files() -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".py"]


def places(pattern: re.Pattern[str], files: Iterator[Path] | tuple[Path, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST, bool]]:
    """Yield every function with its qualified name, and whether it is a method."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node, isinstance(tree, ast.ClassDef)
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def name_of(node: ast.AST) -> str:
    """A dotted name as it is written, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def test_modules_are_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in python_files()}

    too_long = {path.name: n for path, n in lines.items() if n > MODULE_LINES_MAX}
    ours = [n for path, n in lines.items() if path.is_relative_to(SOURCE) and n > 1]

    assert not too_long
    assert median(ours) <= MODULE_LINES_MEDIAN_MAX


def test_functions_are_short() -> None:
    too_long = []
    for path in python_files():
        for name, node, _ in functions(ast.parse(path.read_text())):
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                too_long.append(f"{path.relative_to(ROOT)}:{name}: {length} lines")

    assert not too_long


def test_lines_are_short() -> None:
    # A word that cannot be broken, and what tells a tool something, may hang over.
    end = rf".{{,{LINE_CHARACTERS_MAX}}}\s+# (?:noqa|type:)|\s*\S+$"
    overlong = re.compile(rf"^(?!{end}).{{{LINE_CHARACTERS_MAX + 1}}}")
    files = tuple(p for p in python_files() if p.relative_to(ROOT).as_posix() not in HAS_LONG_LINES)
    found = places(overlong, files)

    assert not found


def test_functions_take_few_positional_parameters() -> None:
    greedy = []
    for path, tree in trees().items():
        for name, node, is_method in functions(tree):
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            static = any(name_of(each) == "staticmethod" for each in node.decorator_list)
            command = path.startswith("cli/") and not is_method  # typer's options are parameters
            count = len(node.args.posonlyargs) + len(node.args.args)
            count -= int(is_method and not static)
            if count > POSITIONAL_PARAMETERS_MAX and not command:
                greedy.append(f"{path}:{name} takes {count}")

    assert not greedy


def test_modules_open_with_what_they_are() -> None:
    silent = []
    for path, tree in trees().items():
        opening = (ast.get_docstring(tree) or "").split("\n\n")[0]
        if not 1 <= len(opening.splitlines()) <= OPENING_LINES_MAX:
            silent.append(path)

    assert not silent


def test_modules_are_named_after_what_they_hold() -> None:
    vague = [
        path for path in trees() if MODULE_NAMES_BANNED & set(Path(path).with_suffix("").parts)
    ]

    assert not vague


def test_nothing_unfinished_is_left_behind() -> None:
    found = places(LEFTOVERS, repository_files())

    assert not found


def test_no_file_knows_a_developers_machine() -> None:
    found = places(MACHINE_PATHS, repository_files())

    assert not found


def test_no_file_knows_a_package_index() -> None:
    files = tuple(path for path in repository_files() if path != Path(__file__))
    found = places(PACKAGE_INDEXES, files)

    assert not found


def test_only_commands_print() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and name_of(node.func) == "print"
        and not path.startswith(TALKS_TO_A_PERSON)
    ]

    assert not found


def test_everything_is_caught_only_where_it_must_be() -> None:
    found: set[str] = set()
    for path, tree in trees().items():
        for name, node, _ in functions(tree):
            inner = {id(n) for _, f, _ in functions(node) for n in ast.walk(f)}
            for each in ast.walk(node):
                if isinstance(each, ast.ExceptHandler) and id(each) not in inner:
                    assert each.type is not None, f"{path}:{each.lineno}: bare except"
                    caught = {name_of(n) for n in ast.walk(each.type)}
                    if caught & {"Exception", "BaseException"}:
                        found.add(f"{path}:{name}")

    assert found == set(CATCHES_EVERYTHING)


def test_the_environment_is_read_in_one_place() -> None:
    names = {"os.environ", "os.environb", "os.getenv", "environ", "getenv"}
    readers = {
        path
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and name_of(node) in names)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {alias.name for alias in node.names} & names
        )
    }

    assert readers == {READS_ENVIRONMENT}


def test_tasks_belong_to_a_group() -> None:
    names = {"asyncio.create_task", "asyncio.ensure_future"}
    found = {
        path
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name_of(node.func) in names
    }

    assert found == set(STARTS_TASKS)


def metrics_in_code() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every metric that is created: its type and its labels, by name."""
    found = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            kind = name_of(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
            if kind not in ("Counter", "Gauge", "Histogram", "Summary"):
                continue
            assert isinstance(node, ast.Call)
            first = node.args[0] if node.args else None
            if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
                continue  # collections.Counter
            labels = next((k.value for k in node.keywords if k.arg == "labelnames"), None)
            labels = node.args[2] if len(node.args) > 2 else labels
            names = tuple(ast.literal_eval(labels)) if labels is not None else ()
            found[first.value] = (kind.lower(), names)
    return found


def metrics_in_docs() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Every row of the tables: | `name` | type | `label` `label` | meaning |."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .+ \|$",
        (DOCS / "metrics.md").read_text(),
        re.MULTILINE,
    )
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_every_metric_is_documented_as_it_is() -> None:
    assert metrics_in_docs() == metrics_in_code()


def errors_in_code() -> dict[str, str]:
    """Every subclass of IroncartError, near or far, and its module."""
    bases = {
        node.name: ({name_of(base).rpartition(".")[2] for base in node.bases}, path)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    family = {"IroncartError"}
    while grown := {name for name, (of, _) in bases.items() if of & family} - family:
        family |= grown
    return {name: bases[name][1] for name in family}


def test_every_error_says_what_becomes_of_a_message() -> None:
    taxonomy = ast.get_docstring(trees()["toolkit/outcomes.py"]) or ""
    listed = set(re.findall(r"^ +(\w+) ", taxonomy, re.MULTILINE))
    listed |= {"IroncartError"} if "IroncartError" in taxonomy else set()
    documented = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE))

    assert set(errors_in_code()) - listed <= documented
    assert documented <= set(errors_in_code()), "docs/errors.md lists what no longer exists"


def module_name(path: str) -> str:
    name = "ironcart." + path.removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


def imported_by(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}:{node.lineno}: import by the full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_is_used_or_is_an_entry_point() -> None:
    modules = {module_name(path) for path in trees()}
    loaded_by_name = {name for name in modules if LOADED_BY_NAME.fullmatch(name)}
    used = set(ENTRY_POINTS) | loaded_by_name
    for path, tree in trees().items():
        used |= set(imported_by(path, tree)) - {module_name(path)}
    packages = {name for name in modules if any(other.startswith(f"{name}.") for other in modules)}

    assert modules - used - packages == set()


def test_what_is_excused_still_exists() -> None:
    assert set(ENTRY_POINTS) <= {module_name(path) for path in trees()}


def settings_in_code() -> set[str]:
    """The environment variables that services and `provision` are told by."""
    homes = ("toolkit/lifecycle/service.py", "cli/provision.py")
    return {
        f"IRONCART_{field.target.id.upper()}"
        for path, tree in trees().items()
        if path in homes or path.endswith("/app.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def test_every_setting_is_in_the_readme() -> None:
    documented = set(re.findall(r"^\| `(IRONCART_\w+)` \|", README, re.MULTILINE))

    assert settings_in_code() <= documented


def test_the_readmes_code_imports_what_exists() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    example = "ironcart.services.loyalty"
    missing = []
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module != "ironcart.events"
            ):
                if node.module.startswith(example):
                    continue
                module = importlib.import_module(node.module)
                missing += [a.name for a in node.names if not hasattr(module, a.name)]

    assert blocks
    assert not missing


def test_the_changelog_knows_this_version() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)

    assert version
    assert f"[{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'"{version[1]}"' in (SOURCE / "__init__.py").read_text()
