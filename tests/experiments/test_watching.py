"""Films of a kept model: what is seen is what its evaluation counts, and what cannot be seen is said."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import InputError
from core.policy import PolicyConfig
from env_runner import offscreen
from env_runner.drawing import Disc, Lived
from env_runner.task_distributions import get_family
from experiments.ledger import Ledger
from experiments.reading import films
from experiments.reading.claim_film import HEIGHT, LARGEST, WIDTH, film_claim
from experiments.reading.films import watch, write_film
from experiments.reading.report import write_report
from experiments.runs.paths import Paths
from experiments.runs.watching import Watched, watch_task
from experiments.vocabulary import ARMS
from meta_rl.evaluate import evaluate
from meta_rl.learner import Learner, build_learner, parse_learner_config

SMALL = PolicyConfig.model_validate(
    {"model": {"kind": "lru", "hidden_dim": 8, "state_dim": 8, "num_layers": 1}, "encoder_dim": 8, "head_dim": 8}
)
SIZE = {"width": 320, "height": 240}


def keep(folder: Path, family: str, kind: str = "rl2", **settings: Any) -> Path:
    config = parse_learner_config({"kind": kind, **settings})
    build_learner(family, SMALL, config, env_steps=40_000, seed=0).save(folder / "model")
    return folder / "model"


def seen(files: Path, *, index: int = 1, episodes: int | None = None) -> Watched:
    return watch_task(files, model="kept", spec=None, pool="search", index=index, episodes=episodes, seed=3)


@pytest.mark.parametrize(
    ("kind", "family"), [("rl2", "CartPole-v1"), ("maml-ppo", "point-robot"), ("maml-ppo", "t-maze")]
)
def test_the_episodes_that_are_seen_are_those_that_the_evaluation_counts(
    kind: str, family: str, tmp_path: Path
) -> None:
    files = keep(tmp_path, family, kind)
    learner = Learner.load(files)
    tasks = get_family(family).eval_tasks("search")
    counted = evaluate(learner, tasks, episodes=2, seed=3)
    watched = seen(files)
    assert [episode.total for episode in watched.episodes] == counted.returns[1].tolist()
    lengths = [len(episode.lived.rewards) for episode in watched.episodes]
    assert lengths == counted.extras["episode_length"][1].tolist()
    words = {"rl2": ["the task is new", "after 1 episode on the task"], "maml-ppo": ["before adapting", "after 1 gradient step"]}  # fmt: skip
    assert [episode.words for episode in watched.episodes] == words[kind]


def test_what_is_noted_of_a_step_is_the_state_that_it_began_from(tmp_path: Path) -> None:
    lived = seen(keep(tmp_path, "point-robot")).episodes[1].lived
    stepped = lived.states[:-1] + 0.1 * np.clip(lived.actions[:-1], -1, 1)
    np.testing.assert_allclose(stepped, lived.states[1:], atol=1e-6)
    goal = np.array([np.cos(lived.tasks[0, 0]), np.sin(lived.tasks[0, 0])])
    np.testing.assert_allclose(-np.linalg.norm(lived.states[1:] - goal, axis=1), lived.rewards[:-1], atol=1e-9)


@pytest.mark.parametrize("family", ["point-robot", "bandit", "t-maze", "tabular-mdp", "CartPole-v1", "Pendulum-v1"])
def test_toys_draw_every_step_themselves_and_their_track_has_a_number_for_each(family: str, tmp_path: Path) -> None:
    watched = seen(keep(tmp_path, family))
    for episode in watched.episodes:
        steps = len(episode.lived.rewards)
        track = watched.family.track(episode.lived)
        assert track.values.shape == (steps,)
        assert track.target is None or track.target.shape == (steps,)
        for step in {0, steps // 2, steps - 1}:
            picture = watched.family.picture(episode.lived, step)
            assert picture is not None
            left, bottom, right, top = picture.window
            agents = [shape for shape in picture.shapes if isinstance(shape, Disc)]
            assert all(
                left <= disc.x <= right and bottom <= disc.y <= top for disc in agents if family != "point-robot"
            )
    film = write_film(watched, tmp_path / "film.png", **SIZE)
    assert (film.drawn_by, film.why) == ("shapes", "")


def test_a_film_has_a_frame_a_step_and_runs_at_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    film = write_film(seen(keep(tmp_path, "point-robot")), tmp_path / "film.gif", fps=5, **SIZE)
    with Image.open(film.file) as image:
        assert (image.size, getattr(image, "n_frames", 1)) == ((320, 240), film.frames)
        assert image.info["duration"] == 200
    assert film.frames == 40
    strip = write_film(seen(keep(tmp_path, "point-robot")), tmp_path / "film.png", **SIZE)
    with Image.open(strip.file) as image:
        assert image.size == (3 * 320, 2 * 240)


def cheetah(tmp_path: Path) -> Watched:
    """Two short episodes of a cheetah, made by hand."""
    watched = seen(keep(tmp_path, "halfcheetah-vel@steps=6", num_worlds=1))
    assert len(watched.episodes[0].lived.rewards) == 6
    return watched


def test_a_robots_track_is_its_velocity_beside_the_target(tmp_path: Path) -> None:
    watched = cheetah(tmp_path)
    lived = watched.episodes[0].lived
    track = watched.family.track(lived)
    moved = np.diff(lived.states[:, 0]) / 0.05  # x by step, in m/s
    np.testing.assert_allclose(track.values[:-1], moved, atol=1e-9)
    assert track.target is not None
    np.testing.assert_array_equal(track.target, watched.task[0])


def test_where_mujoco_cannot_render_the_curve_is_drawn_and_the_reason_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(offscreen, "WAYS", ("no-such-library",))
    film = write_film(cheetah(tmp_path), tmp_path / "film.gif", **SIZE)
    assert film.drawn_by == "curve"
    assert film.why.startswith("MuJoCo cannot render here (no-such-library: ")
    assert "apt install" in film.why
    assert film.why in film.sentences()


def test_where_mujoco_can_render_the_robot_is_seen_and_moves(tmp_path: Path) -> None:
    film = write_film(cheetah(tmp_path), tmp_path / "film.gif", **SIZE)
    if film.drawn_by == "curve":
        pytest.skip(film.why)
    with Image.open(film.file) as image:
        first = np.asarray(image.convert("RGB"), dtype=float)
        image.seek(5)
        later = np.asarray(image.convert("RGB"), dtype=float)
    stage = np.s_[60:160, 100:]
    blue = (np.abs(first[stage] - [31, 111, 139]).sum(axis=2) < 90).mean()  # the torso's colour
    assert blue > 0.003
    assert np.abs(first[stage] - later[stage]).mean() > 0.1


def test_a_report_shows_the_sides_of_a_claim_on_one_task_where_their_models_are_kept(
    old_ledger, tmp_path: Path
) -> None:
    ledger, paths = Ledger(f"sqlite:///{old_ledger('0001')}"), Paths.of(tmp_path)
    assert film_claim(ledger, 1, paths) is None
    named = []
    for arm in ARMS:
        middle = sorted(ledger.runs(1, purpose="confirmation", arm=arm), key=lambda run: run.score or 0.0)
        named.append(f"r-{middle[len(middle) // 2].id:04d}")
        for run in middle:
            files = keep(tmp_path / arm / str(run.id), "point-robot", num_worlds=4)
            for suffix in (".json", ".safetensors"):
                target = paths.model(run.id).with_suffix(suffix)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files.with_suffix(suffix), target)
    html, _ = write_report(ledger, 1, paths)
    (address,) = re.findall(r'src="data:image/gif;base64,([^"]+)"', html.read_text())
    data = base64.b64decode(address)
    assert len(data) <= LARGEST
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (2 * WIDTH, HEIGHT)
    (caption,) = re.findall(r"<figcaption>(Task 10 of the search pool .*?)</figcaption>", html.read_text())
    assert all(f"watch {name} --task 10" in caption for name in named)


def test_headings_are_of_length_one_and_velocities_count_along_them() -> None:
    lived = Lived(np.zeros((2, 3)), np.zeros((2, 1)), np.zeros(2), np.array([[0.5], [2.0]]), {"x_velocity": np.array([1.0, 2.0]), "y_velocity": np.array([0.0, -1.0])})  # fmt: skip
    family = get_family("ant-dir")
    heading = family.heading(lived)
    assert heading is not None
    np.testing.assert_allclose(np.linalg.norm(heading, axis=1), 1.0)
    np.testing.assert_allclose(family.track(lived).values, [np.cos(0.5), 2 * np.cos(2.0) - np.sin(2.0)])
    back = get_family("halfcheetah-dir").track(Lived(lived.states, lived.actions, lived.rewards, -np.ones((2, 1)), lived.infos))  # fmt: skip
    np.testing.assert_array_equal(back.values, [-1.0, -2.0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"index": 20}, "--task: got 20, allowed: 0 to 19"),
        ({"index": -1}, "--task"),
        ({"episodes": 0}, "--episodes"),
        ({"seed": -1}, "--seed"),
        ({"pool": "test"}, "pool"),
        ({"fps": 0}, "--fps"),
        ({"fps": float("nan")}, "--fps"),
        ({"width": 20}, "--width"),
        ({"height": 10**9}, "--height"),
        ({"out": "film.gfi"}, "Did you mean 'film.gif'"),
        ({"out": "film"}, ".gif, .mp4, .png"),
        ({"out": "{folder}"}, "it is a folder"),
        ({"out": "{folder}/model.json/film.gif"}, "--out: cannot write"),
        ({"out": "film.mp4"}, "video"),
        ({"model": "{folder}-nothing"}, "Did you mean"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given: dict, says: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(films.shutil, "which", lambda name: None)
    monkeypatch.setattr(films, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    folder = keep(tmp_path / "kept.gif", "point-robot").parent
    given = {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(InputError) as error:
        watch(None, Paths.of(tmp_path / "data"), **({"model": str(folder)} | given))
    assert says in str(error.value)


def test_a_model_of_another_version_of_the_code_is_refused_in_a_sentence(tmp_path: Path) -> None:
    files = keep(tmp_path, "point-robot")
    tensors, meta = load_checkpoint(files)
    meta["learner"]["config"]["a_field_of_tomorrow"] = 1
    save_checkpoint(files, tensors, meta)
    with pytest.raises(InputError, match=r"another version of the code: a_field_of_tomorrow"):
        Learner.load(files)
    del meta["learner"]["config"]["a_field_of_tomorrow"]
    name = next(name for name in tensors if name.startswith("policy"))
    save_checkpoint(files, {n: t for n, t in tensors.items() if n != name}, meta)
    with pytest.raises(InputError, match="another version of the code"):
        Learner.load(files)
