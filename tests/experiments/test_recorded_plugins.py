"""A run's specification and provenance name the plugins it came from; without them, or with others, it is not trained again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import InputError
from core.plugins import Plugin, load_plugin
from experiments.presets import named_preset
from experiments.runs.provenance import keep_plugins, plugin_names, provenance, require_plugins
from experiments.spec import RunSpec, parse_spec, recorded_spec, set_fields

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "plugins"
CELL, FAMILY, LEARNER, BENCH = (EXAMPLES / f"{n}.py" for n in ("minimal_gated_unit", "crosswind", "reinforce", "footprint"))  # fmt: skip
Load = Callable[[Path], Plugin]


@pytest.fixture
def load(plugins_loaded) -> Load:
    return load_plugin


def test_a_specification_from_the_tree_names_no_plugin_and_keeps_the_hashes_that_were_recorded(load: Load) -> None:
    load(CELL)
    spec = named_preset("point-robot.s5")
    assert "plugins" not in spec.model_dump(mode="json")
    assert (
        spec.config_hash == "3145ae82f585e36d12e3a17b58f20668ef7cacfbc6ebe792a06819bb95bf39ed"
    )  # before there were plugins
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_a_specification_names_the_plugins_that_its_parts_come_from_and_no_other(load: Load) -> None:
    digests = {p.name: p.sha256 for p in (load(CELL), load(FAMILY), load(LEARNER), load(BENCH))}
    of = {
        name: named_preset(name).plugins
        for name in ("point-robot.mgu", "crosswind.lstm", "crosswind.mgu", "ant-dir.s5")
    }
    assert {name: set(named) for name, named in of.items()} == {
        "point-robot.mgu": {"minimal_gated_unit"},
        "crosswind.lstm": {"crosswind"},
        "crosswind.mgu": {"minimal_gated_unit", "crosswind"},
        "ant-dir.s5": set(),
    }
    learned = set_fields(named_preset("ant-dir.s5"), {"learner": json.dumps({"kind": "reinforce"})})
    assert learned.plugins == {"reinforce": digests["reinforce"]}
    back = set_fields(learned, {"learner": json.dumps({"kind": "rl2"})})
    assert back.plugins == {}
    again = parse_spec(learned.model_dump_json(), "test")
    assert (again, again.config_hash) == (learned, learned.config_hash)


def test_another_version_of_a_plugin_gives_other_hashes(load: Load, tmp_path: Path, plugins_loaded) -> None:
    file = tmp_path / CELL.name
    file.write_bytes(CELL.read_bytes())
    load(file)
    first = named_preset("point-robot.mgu")
    plugins_loaded.forget()
    file.write_bytes(CELL.read_bytes() + b"\n# another\n")
    load(file)
    second = named_preset("point-robot.mgu")
    assert first.policy.model_dump() == second.policy.model_dump()
    assert first.config_hash != second.config_hash
    assert first.variant_hash != second.variant_hash
    with pytest.raises(InputError, match=r"was changed: sha256 .* then, .* now") as refused:
        recorded_spec(first.model_dump(mode="json"), "r-0007", {})
    assert str(refused.value).startswith("r-0007 needs its plugins as they were: the plugin 'minimal_gated_unit'")
    with pytest.raises(InputError, match="was changed"):
        parse_spec(first.model_dump_json(), "spec.json")
    plugins_loaded.forget()
    recorded = {"plugins": [{"name": "minimal_gated_unit", "source": "/there/minimal_gated_unit.py"}]}
    with pytest.raises(InputError, match=r"is not loaded: add --plugin /there/minimal_gated_unit\.py"):
        recorded_spec(first.model_dump(mode="json"), "r-0007", recorded)


def test_the_provenance_says_what_each_plugin_is_and_registers_and_keeps_its_code(load: Load, tmp_path: Path) -> None:
    assert "plugins" not in provenance()
    plugin = load(CELL)
    (found,) = json.loads(json.dumps(provenance()))["plugins"]
    digest = hashlib.sha256(CELL.read_bytes()).hexdigest()
    assert found == {
        "name": plugin.name,
        "source": str(CELL),
        "sha256": digest,
        "registers": {"model": ["mgu"]},
    }
    assert plugin_names(provenance()) == f"minimal_gated_unit {digest[:12]}"
    assert keep_plugins(tmp_path) == [tmp_path / "provenance" / digest / "minimal_gated_unit.py"]
    assert keep_plugins(tmp_path)[0].read_bytes() == CELL.read_bytes()


def test_a_campaign_needs_the_plugins_that_it_works_with_and_those_of_its_agents(load: Load, plugins_loaded) -> None:
    for file in (CELL, FAMILY, BENCH, EXAMPLES / "sceptic.py"):
        load(file)
    recorded = provenance()
    used = ("mgu", "lstm", "point-robot", "rl2")
    require_plugins(recorded, used, "c-0001")
    plugins_loaded.forget()
    with pytest.raises(InputError) as refused:
        require_plugins(recorded, used, "c-0001")
    words = str(refused.value)
    assert f"add --plugin {CELL}" in words
    assert "sceptic" in words
    assert "crosswind" not in words
    assert "footprint" not in words
    require_plugins({}, used, "c-0001")  # recorded before there were any
