"""Many MuJoCo worlds advanced by native code; `env_runner.locomotion` makes task environments of them.

Two ways to step, chosen by what a robot's observation needs:
  `RolloutPhysics`  one `mujoco.rollout` call advances all worlds by a whole control step (frame skip inside, a native
                    thread pool outside). It returns positions and velocities only, and starts each control step from a
                    zero solver warm start. HalfCheetah, Hopper, Walker2d.
  `LoopPhysics`     one MjData a world and `mj_step(nstep=frame_skip)` a world, the interpreter lock released inside, on
                    Python threads. It keeps the warm start and exposes what MuJoCo computed on the way (contact forces,
                    body inertias), which no rollout returns. Ant, Humanoid: a step of theirs costs 0.3 ms and the call
                    around it a microsecond.

Parity with Gymnasium v5 from the same state and actions: LoopPhysics is the same calls on the same data, so 1,000 steps
agree bit for bit. RolloutPhysics agrees bit for bit with a Gymnasium environment whose `qacc_warmstart` is zeroed before
each control step; without that, one control step differs by 2e-14 of the largest number (measured, MuJoCo 4.0), because
the constraint solver starts elsewhere and stops elsewhere within its tolerance. tests/env_runner/test_parity.py.
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium.envs.mujoco
import mujoco
import mujoco.rollout
import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from core.errors import bad_value

FULL_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
# Where MuJoCo counts the three ways in which it gives up on a world and resets it.
UNSTABLE_WARNINGS = [
    int(kind)
    for kind in (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
]


def _drop(message: str) -> None:
    """MuJoCo's warnings go to stderr and to MUJOCO_LOG.TXT in the working directory; unstable worlds are counted here."""


def silence_mujoco() -> None:
    """Drop MuJoCo's warnings, unless the program has a handler of its own already."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_drop)


def model_xml(name: str) -> ElementTree.Element:
    """Gymnasium's XML file `name` (`half_cheetah.xml`) without textures, materials, lights and cameras.

    These change no physics (tests/env_runner/test_parity.py) and are 1 MB a model, which per-world models would copy.
    """
    root = ElementTree.parse(Path(gymnasium.envs.mujoco.__file__).parent / "assets" / name).getroot()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("asset", "visual", "light", "camera"):
                parent.remove(child)
        parent.attrib.pop("material", None)
    return root


def compile_model(root: ElementTree.Element) -> mujoco.MjModel:
    """The model of an XML tree, compiled without a word on the terminal or in a log file."""
    silence_mujoco()
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    # Looking for islands of constraints gains nothing for a single robot: without it the numbers are the same to the last
    # bit (tests/env_runner/test_parity.py) and a step up to 9 % faster. MuJoCo 3.3 does not look unless asked.
    if hasattr(mujoco.mjtDisableBit, "mjDSBL_ISLAND"):
        model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    return model


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def check_threads(num_threads: Any) -> int:
    """`num_threads` if this machine has that many cores, else InputError."""
    cores = available_cores()
    if isinstance(num_threads, bool) or not isinstance(num_threads, int) or not 0 <= num_threads <= cores:
        raise bad_value("num_threads", num_threads, f"0 (the caller's thread) to {cores} (the cores at hand)")
    return num_threads


class RolloutPhysics:
    """All worlds in one native call. Threads: 0 or 1 on the caller's, else a persistent pool.

    `full_state` (N, S) is mjSTATE_FULLPHYSICS of every world; `qpos` (N, nq) and `qvel` (N, nv) are views of it.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, frame_skip: int, num_threads: int = 0) -> None:
        silence_mujoco()
        pool_size = num_threads if num_threads > 1 else 0
        self._pool = mujoco.rollout.Rollout(nthread=pool_size)
        self._data = [mujoco.MjData(model) for _ in range(max(1, pool_size))]
        self._frame_skip = frame_skip
        # Four chunks a thread: enough to even out worlds of unequal cost, and cheaper than MuJoCo's own ten.
        self._chunk = max(1, num_envs // (4 * max(1, pool_size)))
        self._nearly_a_step = (frame_skip - 0.5) * model.opt.timestep
        size = mujoco.mj_stateSize(model, FULL_PHYSICS)
        # Layout of mjSTATE_FULLPHYSICS: time, qpos, qvel, then what these robots do not have (activations, plugins).
        self.full_state = np.zeros((num_envs, size))
        self._blank = np.zeros(size)
        mujoco.mj_getState(model, mujoco.MjData(model), self._blank, FULL_PHYSICS)
        self._path = np.zeros((num_envs, frame_skip, size))
        self._ctrl = np.zeros((num_envs, frame_skip, model.nu))
        self.qpos = self.full_state[:, 1 : 1 + model.nq]
        self.qvel = self.full_state[:, 1 + model.nq : 1 + model.nq + model.nv]
        self.models = [model] * num_envs

    def set_models(self, models: Sequence[mujoco.MjModel]) -> None:
        """Give every world its own model (same sizes as before); call `start` before the next step."""
        self.models = list(models)

    def start(
        self, worlds: Int64[ndarray, " K"], qpos: Float64[ndarray, "K nq"], qvel: Float64[ndarray, "K nv"]
    ) -> None:
        """Put these worlds at time 0 with these positions and velocities."""
        self.full_state[worlds] = self._blank
        self.qpos[worlds], self.qvel[worlds] = qpos, qvel

    def step(self, ctrl: Float64[ndarray, "N nu"]) -> Bool[ndarray, " N"] | None:
        """Advance all worlds by `frame_skip` steps under constant controls.

        Returns which became unstable, or None: those keep the numbers they had before, and must be started again.
        """
        state, path = self.full_state, self._path
        self._ctrl[:] = ctrl[:, None]
        self._pool.rollout(
            self.models,
            self._data,
            state,
            self._ctrl,
            skip_checks=True,
            nstep=self._frame_skip,
            state=path,
            chunk_size=self._chunk,
        )
        # A world that MuJoCo gives up on is reset by it, so its clock shows less than a whole step more than before.
        passed = path[:, -1, 0] - state[:, 0]
        if passed.min() >= self._nearly_a_step:
            state[:] = path[:, -1]
            return None
        unstable = passed < self._nearly_a_step
        state[~unstable] = path[~unstable, -1]
        return unstable

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()


class LoopPhysics:
    """One MjData a world, stepped one by one on the caller's thread or on `num_threads` Python threads.

    `fields` names the MjData arrays to copy out after each step (after `mj_rnePostConstraint`, as Gymnasium does),
    each into `self.derived[name]` of shape (N, ...).
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, frame_skip: int, num_threads: int = 0, fields: Sequence[str] = ()
    ) -> None:
        silence_mujoco()
        self._executor = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        share = -(-num_envs // max(1, num_threads))
        self._shares = [range(first, min(first + share, num_envs)) for first in range(0, num_envs, share)]
        self._frame_skip = frame_skip
        self._fields = tuple(fields)
        self.qpos = np.zeros((num_envs, model.nq))
        self.qvel = np.zeros((num_envs, model.nv))
        self._unstable = np.zeros(num_envs, dtype=bool)
        self.derived = {name: np.zeros((num_envs, *getattr(mujoco.MjData(model), name).shape)) for name in fields}
        self.set_models([model] * num_envs)

    def set_models(self, models: Sequence[mujoco.MjModel]) -> None:
        """As in RolloutPhysics."""
        self.models = list(models)
        self.data = [mujoco.MjData(model) for model in self.models]
        # Views into each MjData, taken once: attribute access through the bindings costs as much as the copy.
        self._views = [
            [(data.qpos, self.qpos[world]), (data.qvel, self.qvel[world])]
            + [(getattr(data, name), self.derived[name][world]) for name in self._fields]
            for world, data in enumerate(self.data)
        ]
        self._ctrl_views = [data.ctrl for data in self.data]

    def _read(self, world: int) -> None:
        for source, target in self._views[world]:
            target[...] = source

    def start(
        self, worlds: Int64[ndarray, " K"], qpos: Float64[ndarray, "K nq"], qvel: Float64[ndarray, "K nv"]
    ) -> None:
        """As in RolloutPhysics."""
        for row, world in enumerate(worlds.tolist()):
            model, data = self.models[world], self.data[world]
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = qpos[row], qvel[row]
            mujoco.mj_forward(model, data)
            self._read(world)

    def _step_share(self, share: range, ctrl: ndarray) -> None:
        for world in share:
            model, data = self.models[world], self.data[world]
            self._ctrl_views[world][:] = ctrl[world]
            mujoco.mj_step(model, data, nstep=self._frame_skip)
            mujoco.mj_rnePostConstraint(model, data)
            self._unstable[world] = any(data.warning[kind].number for kind in UNSTABLE_WARNINGS)
            if not self._unstable[world]:
                self._read(world)

    def step(self, ctrl: Float64[ndarray, "N nu"]) -> Bool[ndarray, " N"] | None:
        """As in RolloutPhysics."""
        if self._executor is None:
            self._step_share(self._shares[0], ctrl)
        else:
            for done in [self._executor.submit(self._step_share, share, ctrl) for share in self._shares]:
                done.result()
        return self._unstable.copy() if self._unstable.any() else None

    def close(self) -> None:
        """Stop the threads."""
        if self._executor is not None:
            self._executor.shutdown()
