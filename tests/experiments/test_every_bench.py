"""What holds for every bench, one from a plugin too: it has a title that is read without importing it, and a main that takes words."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import InputError
from experiments.bench import registered
from experiments.bench.registered import BENCHES, list_benches, register_bench

EVERY = BENCHES.names()
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", EVERY)
def test_it_has_a_title_of_one_line_and_a_main_that_takes_the_words_after_its_name(name: str) -> None:
    title = BENCHES.title(name)
    assert len(title) > 20
    assert (name, title) in list_benches().rows
    main = BENCHES[name]
    first, *others = inspect.signature(main).parameters.values()
    assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(other.default is not inspect.Parameter.empty for other in others)
    assert sys.modules[main.__module__].__doc__ is not None


def test_names_and_titles_are_known_without_importing_any_bench() -> None:
    code = (
        "import sys\nfrom experiments.bench.registered import BENCHES, list_benches\n"
        "assert {'env', 'models', 'proposers'} <= set(BENCHES)\nassert len(list_benches().rows) == len(BENCHES.names())\n"
        "loaded = [m for m in sys.modules if m.startswith('experiments.bench.') and not m.endswith('registered')]\n"
        "assert not loaded and 'torch' not in sys.modules, loaded"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_bench_that_cannot_be_imported_hides_no_other_and_says_why_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken_for_a_test.py"
    broken.write_text('"""A bench that never comes to be."""\nimport no_such_module\n')
    monkeypatch.setattr(registered, "_files", lambda: {"broken": broken})
    import experiments.bench

    monkeypatch.setattr(experiments.bench, "__path__", [*experiments.bench.__path__, str(tmp_path)])
    monkeypatch.setattr(BENCHES, "_failures", {})
    for _ in range(2):
        with pytest.raises(InputError, match=r"broken_for_a_test could not be imported: .*no_such_module"):
            BENCHES["broken"]
        assert BENCHES.title("broken") == "A bench that never comes to be."
        assert "no_such_module" in list_benches().note


def test_a_name_of_the_tree_is_taken_and_an_unknown_one_is_answered_with_the_nearest() -> None:
    with pytest.raises(RuntimeError, match=r"'env' is registered twice: by experiments\.bench\.env and by"):
        register_bench("env")(lambda arguments: 0)
    with pytest.raises(InputError, match=r"unknown bench 'modls'\. Did you mean 'models'"):
        BENCHES["modls"]
