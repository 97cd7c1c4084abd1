"""The parts of the check that are no unit tests: lint, format, types, import contracts, the layout, the documents."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name != "tests")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = sorted((ROOT / "docs/design").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "skills").rglob("*.md"))]  # fmt: skip
LONGEST_FILE, FULLEST_FOLDER = 600, 20


def _run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-6000:]}{result.stderr[-2000:]}"


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the packages; a package stands for its `__init__.py`."""
    files = [ROOT / "main.py", *(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def test_the_code_is_linted_and_formatted() -> None:
    _run(sys.executable, "-m", "ruff", "check", ".")
    _run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_the_types_hold() -> None:
    _run(str(Path(sys.executable).parent / "basedpyright"), "--pythonpath", sys.executable, "--level", "error")


# ---- layout -------------------------------------------------------------------------------------------------------


def test_imports_go_in_one_direction() -> None:
    _run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")


def _imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules that it names in any import, those inside functions and for type checkers alone included."""
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        seen: set[str] = set()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                seen |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] + "." * bool(node.module) if node.level else ""
                source = above + (node.module or "")
                names = {f"{source}.{alias.name}" for alias in node.names}
                seen |= {full if full in modules else source for full in names}
        graph[name] = (seen & modules.keys()) - {name}
    return graph


def _circles(graph: dict[str, set[str]]) -> Iterator[str]:
    """Every circle that a walk along the imports closes, such as "a -> b -> a"."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> Iterator[str]:
        if name in way:
            yield " -> ".join([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                yield from walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        yield from walk(name, [])


def test_no_imports_run_in_a_circle() -> None:
    assert list(_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == ["b -> c -> b"]
    assert list(_circles(_imports(_modules()))) == []


def test_no_file_is_too_long_and_no_folder_too_full() -> None:
    files = [file for file in _modules().values() if "migrations" not in file.parts]
    long = {str(f.relative_to(ROOT)): n for f in files if (n := f.read_text().count("\n")) > LONGEST_FILE}
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in files)
    full = {folder: count for folder, count in counts.items() if count > FULLEST_FOLDER}
    assert (long, full) == ({}, {})


def test_every_folder_with_modules_is_a_package_that_git_keeps() -> None:
    files = list(_modules().values())
    folders = {file.parent for file in files} - {ROOT}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
    if (ROOT / ".git").exists():  # a pattern in .gitignore would leave a file out of every clone
        asked = "\0".join(str(file.relative_to(ROOT)) for file in files)
        ignored = subprocess.run(["git", "check-ignore", "-z", "--no-index", "--stdin"], cwd=ROOT, input=asked, capture_output=True, text=True)  # fmt: skip
        assert ignored.stdout == ""


def test_every_package_is_in_the_distribution_and_says_that_it_is_typed() -> None:
    tool = SETTINGS["tool"]["setuptools"]
    assert {name.rstrip("*") for name in tool["packages"]["find"]["include"]} == set(PACKAGES)
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []
    assert tool["package-data"]["*"] == ["py.typed"]


# ---- what a stranger finds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "AGENTS.md", ".pre-commit-config.yaml",
     "saved_models/README.md", "docs/architecture.md", "docs/benchmarks.md", "docs/commands.md", ".ci/run"],
)  # fmt: skip
def test_the_repository_has(name: str) -> None:
    assert (ROOT / name).is_file()


def test_the_readme_has_the_two_commands_that_do_all_the_set_up() -> None:
    text = (ROOT / "README.md").read_text()
    assert 'pip install -e . && python main.py --goal "beat LSTM on halfcheetah-vel"' in text
    assert 'pip install -e ".[dev]" && pytest' in text


def test_ci_runs_the_readmes_own_test_command() -> None:
    assert 'pip install -q -e ".[dev]" && pytest' in (ROOT / ".ci/run").read_text()


def test_the_citation_names_this_version_of_the_distribution() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert all(author["name"] for author in citation["authors"])
    assert isinstance(citation["date-released"], date)
    project = SETTINGS["project"]
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])


def test_the_changelog_has_a_section_of_this_version_with_its_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    released = yaml.safe_load((ROOT / "CITATION.cff").read_text())["date-released"].isoformat()
    assert sections[0] == ("Unreleased", "")
    assert sections[1] == (SETTINGS["project"]["version"], released)


def test_the_hooks_before_a_commit_are_the_programs_of_the_check() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"  # nothing is fetched
    assert all({"id", "name", "entry", "language"} <= hook.keys() for hook in local["hooks"])
    entries = " ".join(hook["entry"] for hook in local["hooks"])
    assert all(program in entries for program in ("ruff check", "ruff format", "basedpyright", "lint-imports"))
    installed = " ".join(SETTINGS["project"]["optional-dependencies"]["dev"])
    assert all(program in installed for program in ("ruff", "basedpyright", "import-linter"))


def test_coverage_measures_every_package_but_what_is_compiled() -> None:
    settings = SETTINGS["tool"]["coverage"]["run"]
    assert sorted(settings["source"]) == PACKAGES
    assert all((ROOT / place.removesuffix("/*")).is_dir() for place in settings["omit"])
    assert "core/kernels/*" in settings["omit"]
    assert settings["patch"] == ["subprocess"]  # runs are trained in processes of their own
    assert settings["parallel"]
    assert any(word.startswith("pytest-cov") for word in SETTINGS["project"]["optional-dependencies"]["dev"])


def _words_in_code(text: str) -> Iterator[str]:
    """Words of code blocks and of `code` in a Markdown text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in [*blocks, *re.findall(r"`([^`\n]+)`", rest)]:
        yield from (word.strip(",;:()") for word in code.split())


def _is_there(word: str) -> bool:
    """Whether what looks like a path or a module of this project exists; True for every other word."""
    if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", word) and re.search(r"/$|\.(py|md|toml|cff|yaml|j2|jsonl|svg)$|/[\w-]+\.json$", word):  # fmt: skip
        if word.startswith(("runs/", "path/to/")):  # written by a run, or a placeholder
            return True
        return any(ROOT.glob(word.rstrip("/") if "/" in word else f"**/{word}"))
    modules = _modules()
    if re.fullmatch(r"\w+(\.\w+)+(\(.*)?", word) and word.partition(".")[0] in PACKAGES:
        parts = word.partition("(")[0].split(".")
        length = next(n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in modules)
        return length == len(parts) or re.search(rf"\b{parts[length]}\b", modules[".".join(parts[:length])].read_text()) is not None  # fmt: skip
    return True


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_and_link_in_a_document_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    assert sorted({word for word in _words_in_code(text) if not _is_there(word)}) == []
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (document.parent / link).exists()] == []


def test_a_document_that_names_what_is_not_there_is_noticed() -> None:
    words = [
        "core/scam.py",
        "core/scan.py",
        "core.errors.InputErorr",
        "core.errors.InputError",
        "nothing/",
        "*_agent.py",
    ]
    assert [_is_there(word) for word in words] == [False, True, False, True, False, True]


def test_the_map_names_every_wing_and_every_design_note() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    wings = sorted(file.parent.name for file in (ROOT / "experiments").glob("*/__init__.py"))
    assert [wing for wing in wings if f"`experiments/{wing}/`" not in text] == []
    assert [page.name for page in PAGES if f"(design/{page.name})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_design_note_has_question_what_was_tried_decision_and_numbers(page: Path) -> None:
    headings = [line.removeprefix("## ") for line in page.read_text().splitlines() if line.startswith("## ")]
    assert [h for h in headings if h in ("Question", "What was tried or ruled out", "Decision", "Numbers")] == [
        "Question", "What was tried or ruled out", "Decision", "Numbers",
    ]  # fmt: skip
