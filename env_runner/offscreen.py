"""Pictures of MuJoCo states without a display: a process of its own draws them, with EGL or else OSMesa, whichever works.

MuJoCo chooses its OpenGL once, when it is imported, and a driver that fails may end the process: so each way is tried in a process of its
own, which gets the model and the states as files. Every robot is drawn alike: its limbs in colours, over a ground with a line a metre.
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float64, UInt8
from numpy import ndarray

WAYS = ("egl", "osmesa") if sys.platform == "linux" else ("",)  # elsewhere MuJoCo's own choice needs no display
LONGEST_S = 1800.0
GROUND, LINES, SKY = (0.87, 0.90, 0.92, 1.0), (0.70, 0.75, 0.78, 1.0), (0.95, 0.97, 0.98, 1.0)
TORSO, ARROW = (0.12, 0.43, 0.55, 1.0), (0.78, 0.33, 0.24, 1.0)
LIMBS = ((0.85, 0.58, 0.20, 1.0), (0.42, 0.60, 0.31, 1.0), (0.48, 0.37, 0.65, 1.0), (0.24, 0.35, 0.50, 1.0))


class Rendered(NamedTuple):
    """Frames (F, H, W, 3), and which OpenGL drew them."""

    frames: UInt8[ndarray, "F H W 3"]
    way: str


class CannotRenderError(RuntimeError):
    """No OpenGL on this machine draws without a display; its text says why, in a clause."""


def render_states(
    model: mujoco.MjModel,
    states: Float64[ndarray, "F nq"],
    *,
    width: int,
    height: int,
    arrows: Float64[ndarray, "F 2"] | None = None,
) -> Rendered:
    """A picture of each state, positions `qpos`, by a camera that goes with the robot.

    arrows: directions (x, y) of length 1 that are drawn on the ground beside it. Raises CannotRenderError.
    """
    reasons = []
    with tempfile.TemporaryDirectory(prefix="render-") as name:
        folder = Path(name)
        mujoco.mj_saveModel(model, str(folder / "model.mjb"))
        np.savez(folder / "states.npz", states=states, arrows=np.zeros((0, 2)) if arrows is None else arrows)
        (folder / "size.json").write_text(json.dumps([width, height]))
        for way in WAYS:
            root = str(Path(__file__).resolve().parents[1])
            chosen = {"MUJOCO_GL": way, "PYOPENGL_PLATFORM": way} if way else {}
            environment = {**os.environ, **chosen, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}  # fmt: skip
            command = [sys.executable, "-m", "env_runner.offscreen", str(folder)]
            try:
                done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, timeout=LONGEST_S)
            except subprocess.TimeoutExpired:
                reasons.append(f"{way} took too long")
                continue
            if done.returncode == 0:
                return Rendered(np.load(folder / "frames.npy"), way or "opengl")
            said = done.stderr.decode(errors="replace").strip().splitlines()
            reasons.append(f"{way or 'opengl'}: {said[-1] if said else f'ended with {done.returncode}'}"[:160])
    raise CannotRenderError("; ".join(reasons))


def _draw_all(folder: Path) -> None:
    """What the process does: from model.mjb, states.npz and size.json to frames.npy."""
    model: Any = mujoco.MjModel.from_binary_path(str(folder / "model.mjb"))
    lived = np.load(folder / "states.npz")
    width, height = json.loads((folder / "size.json").read_text())
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    model.vis.quality.shadowsize, model.vis.quality.offsamples = 1024, 4
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:], model.vis.headlight.specular[:] = 0.45, 0.35, 0.0
    data, renderer = mujoco.MjData(model), mujoco.Renderer(model, height, width, max_geom=500)
    data.qpos[:] = lived["states"][0]
    mujoco.mj_forward(model, data)
    stage = _Stage(model, data)
    frames = np.empty((len(lived["states"]), height, width, 3), dtype=np.uint8)
    for index, state in enumerate(lived["states"]):
        data.qpos[:] = state
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        renderer.update_scene(data, stage.camera(data))
        stage.dress(renderer.scene, lived["arrows"][index] if len(lived["arrows"]) else None)
        frames[index] = renderer.render()
    np.save(folder / "frames.npy", frames)


class _Stage:
    """The camera, the ground, the light and the colours around one robot."""

    def __init__(self, model: Any, data: Any) -> None:
        solid = [g for g in range(model.ngeom) if model.geom_type[g] != int(mujoco.mjtGeom.mjGEOM_PLANE)]
        centre = data.subtree_com[1]
        reach = [np.linalg.norm(data.geom_xpos[g] - centre) + model.geom_rbound[g] for g in solid]
        self.size = float(max(reach))
        self.flat = int(model.jnt_type[0]) != int(mujoco.mjtJoint.mjJNT_FREE)
        self.height = float(centre[2])
        self.place = np.array(centre)
        self.colours = [_limb_colour(model, int(model.geom_bodyid[g])) for g in range(model.ngeom)]

    def camera(self, data: Any) -> Any:
        """Beside the robot; it follows along the ground, a little late, and not up and down."""
        seen = np.array(data.subtree_com[1])
        far = np.linalg.norm(seen[:2] - self.place[:2]) > self.size  # a new episode began
        self.place = seen if far else 0.7 * self.place + 0.3 * seen
        camera: Any = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = self.place[0], self.place[1], 0.75 * self.height
        camera.azimuth, camera.elevation = 90.0, (-10.0 if self.flat else -28.0)
        camera.distance = (2.4 if self.flat else 3.0) * self.size
        return camera

    def dress(self, scene: Any, arrow: ndarray | None) -> None:
        for index in range(scene.ngeom):
            geom = scene.geoms[index]
            is_ground = geom.type == int(mujoco.mjtGeom.mjGEOM_PLANE)
            geom.rgba[:] = GROUND if is_ground else self.colours[geom.objid]
            geom.reflectance, geom.specular, geom.shininess = 0.0, 0.1 * (not is_ground), 0.2
        x, y = self.place[:2]
        for metre in range(-12, 13):
            self._box(scene, (np.round(x) + metre, y, 0.0), (0.012, 30.0, 0.002), LINES)
            if not self.flat:
                self._box(scene, (x, np.round(y) + metre, 0.0), (30.0, 0.012, 0.002), LINES)
        self._box(scene, (x, y + 14.0, 0.0), (60.0, 0.1, 40.0), SKY, emission=1.0)
        if arrow is not None:
            start = np.array([x, y, 0.04]) + 0.9 * self.size * np.array([*arrow, 0.0]) * (not self.flat)
            start[1] -= 0.5 * self.size * self.flat  # before the robot, not behind it
            geom = _new_geom(scene)
            mujoco.mjv_initGeom(geom, int(mujoco.mjtGeom.mjGEOM_ARROW), np.zeros(3), np.zeros(3), np.eye(3).ravel(), np.array(ARROW, np.float32))  # fmt: skip
            mujoco.mjv_connector(geom, int(mujoco.mjtGeom.mjGEOM_ARROW), 0.05 * self.size, start, start + 0.9 * self.size * np.array([*arrow, 0.0]))  # fmt: skip
        light = scene.lights[scene.nlight]
        scene.nlight += 1
        light.pos[:], light.dir[:] = (x, y - 2.0, 6.0), (0.1, 0.35, -1.0)
        light.ambient[:], light.diffuse[:], light.specular[:] = 0.0, 0.35, 0.1
        light.type, light.castshadow, light.headlight = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, 1, 0

    def _box(self, scene: Any, place: tuple, size: tuple, colour: tuple, emission: float = 0.0) -> None:
        geom = _new_geom(scene)
        mujoco.mjv_initGeom(
            geom,
            int(mujoco.mjtGeom.mjGEOM_BOX),
            np.array(size),
            np.array(place),
            np.eye(3).ravel(),
            np.array(colour, np.float32),
        )
        geom.emission, geom.specular, geom.category = emission, 0.0, int(mujoco.mjtCatBit.mjCAT_DECOR)


def _new_geom(scene: Any) -> Any:
    scene.ngeom += 1
    return scene.geoms[scene.ngeom - 1]


def _limb_colour(model: Any, body: int) -> tuple[float, ...]:
    """The torso's colour, or that of the limb that hangs from the torso, which is body 1."""
    limbs = [b for b in range(2, model.nbody) if model.body_parentid[b] == 1]
    while body > 1 and body not in limbs:
        body = int(model.body_parentid[body])
    return LIMBS[limbs.index(body) % len(LIMBS)] if body in limbs else TORSO


if __name__ == "__main__":
    _draw_all(Path(sys.argv[1]))
