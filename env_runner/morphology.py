"""Changed bodies: masses, gravity and the like on a compiled model, limbs and joints in the XML.

The limb generator is ours, in the spirit of iMuJoCo, which publishes its files but no generator: it scales each limb's
length about its joint, its mass, each joint's range and the ground friction in Gymnasium's own XML.
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import copy
from xml.etree import ElementTree

import mujoco
import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from env_runner.batched_mujoco import compile_model, model_xml

MJ_CAPSULE = int(mujoco.mjtGeom.mjGEOM_CAPSULE)
MJ_PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)
MJ_FREE = int(mujoco.mjtJoint.mjJNT_FREE)


def with_gravity(model: mujoco.MjModel, factor: float) -> mujoco.MjModel:
    """A copy of the model under `factor` times its gravity."""
    changed = copy.copy(model)
    changed.opt.gravity[:] = model.opt.gravity * factor
    return changed


def with_mass(model: mujoco.MjModel, factor: float) -> mujoco.MjModel:
    """A copy of the model with every mass and inertia times `factor`."""
    changed = copy.copy(model)
    changed.body_mass[:] = model.body_mass * factor
    changed.body_inertia[:] = model.body_inertia * factor
    return _recompute(changed)


def param_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of the factors that `with_params` takes: a mass and an inertia a body, damping a damped joint, friction a geom."""
    bodies = [_name(model, mujoco.mjtObj.mjOBJ_BODY, body) for body in range(1, model.nbody)]
    geoms = [_name(model, mujoco.mjtObj.mjOBJ_GEOM, geom) for geom in range(model.ngeom)]
    return (
        *(f"mass_{body}" for body in bodies),
        *(f"inertia_{body}" for body in bodies),
        *(f"damping_{_name(model, mujoco.mjtObj.mjOBJ_JOINT, int(model.dof_jntid[dof]))}" for dof in _damped(model)),
        *(f"friction_{geom}" for geom in geoms),
    )


def with_params(model: mujoco.MjModel, factors: Float64[ndarray, " P"]) -> mujoco.MjModel:
    """A copy of the model with masses, inertias, damping and friction times `factors`, in the order of `param_names`."""
    changed = copy.copy(model)
    bodies, damped = model.nbody - 1, _damped(model)
    mass, inertia, damping, friction = np.split(factors, np.cumsum([bodies, bodies, len(damped)]))
    changed.body_mass[1:] = model.body_mass[1:] * mass
    changed.body_inertia[1:] = model.body_inertia[1:] * inertia[:, None]
    changed.dof_damping[damped] = model.dof_damping[damped] * damping
    changed.geom_friction[:] = model.geom_friction * friction[:, None]
    return _recompute(changed)


def _damped(model: mujoco.MjModel) -> ndarray:
    return np.nonzero(model.dof_damping > 0)[0]


def _name(model: mujoco.MjModel, kind: mujoco.mjtObj, index: int) -> str:
    return mujoco.mj_id2name(model, kind, index) or f"{kind.name.removeprefix('mjOBJ_').lower()}{index}"


def _recompute(model: mujoco.MjModel) -> mujoco.MjModel:
    """Bring the constants that MuJoCo derives from masses (weights of constraints, subtree masses) up to date."""
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


# Limbs ---------------------------------------------------------------------------------------------------------------
class LimbGenerator:
    """Makes models of one robot with changed limbs. A limb is a body that is moved by a motor.

    A morphology is `param_names` factors: `mass_<limb>`, `length_<limb>`, `range_<joint>` and one `friction`. With all
    factors 1 the model is the stock one (tests/env_runner/test_morphology.py). The torso is moved up or down so that
    the lowest point of the start pose stays at its height, else longer legs would start inside the floor; planar robots
    keep their z coordinate, which so stays relative to the standing height that the health limits assume.
    """

    def __init__(self, xml: str) -> None:
        self._root = model_xml(xml)
        self._density = _settle_density(self._root)
        motors = {motor.get("joint") for motor in self._root.iter("motor")}
        joints = [joint.get("name", "") for body in _limb_bodies(self._root, motors) for joint in body.findall("joint")]
        self._motors = motors
        # A limb is named after its joint: the ant's lower legs have no body name.
        self.param_names = (
            *(f"mass_{joint}" for joint in joints),
            *(f"length_{joint}" for joint in joints),
            *(f"range_{joint}" for joint in joints),
            "friction",
        )
        self._num_limbs = len(joints)
        self._lowest = _lowest_point(compile_model(self._root))

    def build(self, factors: Float64[ndarray, " P"]) -> mujoco.MjModel:
        """The model with these factors, in the order of `param_names`."""
        root = copy.deepcopy(self._root)
        mass, length, joint_range, friction = np.split(factors, np.arange(1, 4) * self._num_limbs)
        for row, body in enumerate(_limb_bodies(root, self._motors)):
            _scale_length(body, float(length[row]))
            for geom in body.findall("geom"):
                # Mass grows with length at constant density; `mass` is on top of that.
                geom.set("density", repr(float(geom.get("density", self._density)) * float(mass[row])))
            for joint in body.findall("joint"):
                limits = _numbers(joint.get("range"))
                # About the start pose (0) where it is inside, so that it stays inside; else about the middle.
                centre = 0.0 if limits[0] <= 0 <= limits[1] else limits.mean()
                joint.set("range", _text(centre + (limits - centre) * float(joint_range[row])))
        for geom in root.iter("geom"):
            if geom.get("friction") is not None:
                geom.set("friction", _text(_numbers(geom.get("friction")) * friction[0]))
        model = compile_model(root)
        rise = self._lowest - _lowest_point(model)
        model.body_pos[1, 2] += rise
        if model.jnt_type[0] == MJ_FREE:
            model.qpos0[2] += rise
        return _recompute(model)


def _settle_density(root: ElementTree.Element) -> float:
    """Write the density and friction of every geom into the default geom, and drop `settotalmass`. Returns the density.

    With `settotalmass` a heavier limb would make all others lighter; the density that it stands for is made explicit.
    """
    compiler, default = root.find("compiler"), root.find("default/geom")
    assert compiler is not None
    assert default is not None
    density = float(default.get("density", "1000"))
    total = compiler.attrib.pop("settotalmass", None)
    if total is not None:
        density *= float(total) / compile_model(root).body_mass.sum()
    default.set("density", repr(float(density)))
    if default.get("friction") is None:
        default.set("friction", "1 0.005 0.0001")  # MuJoCo's own default
    return float(density)


def _limb_bodies(root: ElementTree.Element, motors: set[str | None]) -> list[ElementTree.Element]:
    return [body for body in root.iter("body") if any(joint.get("name") in motors for joint in body.findall("joint"))]


def _scale_length(body: ElementTree.Element, factor: float) -> None:
    """Scale a limb about its joint: its capsules' ends and where its children hang; radii stay."""
    joint = body.find("joint")
    assert joint is not None
    anchor = _numbers(joint.get("pos", "0 0 0"))
    for geom in body.findall("geom"):
        if geom.get("fromto") is not None:
            ends = _numbers(geom.get("fromto")).reshape(2, 3)
            geom.set("fromto", _text((anchor + factor * (ends - anchor)).ravel()))
        else:
            geom.set("pos", _text(anchor + factor * (_numbers(geom.get("pos", "0 0 0")) - anchor)))
            size = _numbers(geom.get("size"))
            geom.set("size", _text(np.array([size[0], size[1] * factor])))
    for child in body.findall("body"):
        child_joint = child.find("joint")
        offset = _numbers(child.get("pos", "0 0 0"))
        held = offset + (_numbers(child_joint.get("pos", "0 0 0")) if child_joint is not None else 0.0)
        child.set("pos", _text(offset + (anchor + factor * (held - anchor)) - held))


def _lowest_point(model: mujoco.MjModel) -> float:
    """Height (m) of the lowest point of the robot in its start pose."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    lowest = np.inf
    for geom in range(model.ngeom):
        if model.geom_type[geom] == MJ_PLANE:
            continue
        half = model.geom_size[geom, 1] if model.geom_type[geom] == MJ_CAPSULE else 0.0
        axis_z = abs(data.geom_xmat[geom].reshape(3, 3)[2, 2])
        lowest = min(lowest, data.geom_xpos[geom, 2] - half * axis_z - model.geom_size[geom, 0])
    return float(lowest)


def _numbers(text: str | None) -> Float64[ndarray, " K"]:
    return np.array((text or "").split(), dtype=np.float64)


def _text(numbers: ndarray) -> str:
    return " ".join(repr(float(number)) for number in numbers)
