"""The scene: what its YAML file may say, and the MuJoCo model built from it.

World frame: the first arm's fr3_link0, x away from the robot, y to its left, z up, table top at z = 0. SI units.
Arm and hand are the Panda of dm_robotics (Apache-2.0), whose kinematics the FR3 shares.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mujoco
import numpy as np

from franka_sim.configuration import load_yaml
from franka_sim.errors import ConfigurationError

Vector3 = tuple[float, float, float]
Range = tuple[float, float]
Area = tuple[Range, Range]

TIMESTEP_S = 0.001
PARKING = np.array([6.0, 0.0, 0.5])  # behind the front camera: where objects wait that the task does not use
RENDERED_GROUP, HIDDEN_GROUP = 0, 5
ENVIRONMENT_BIT = 1  # contact bits: the environment has this one, arm i has 2 << i
LINK_RGBA, HAND_RGBA = [0.88, 0.89, 0.90, 1.0], [0.25, 0.26, 0.28, 1.0]
HULL_VERTICES = 64  # of the links' collision hulls; a tenth of the default, a few times faster


@dataclass(frozen=True)
class ArmConfig:
    """Where an arm's fr3_link0 stands in the world."""

    base_position: Vector3
    base_yaw: float


@dataclass(frozen=True)
class HomeConfig:
    """Start of an episode: the tool points down at `tcp` +- `tcp_spread` (arm's base frame)."""

    posture: tuple[float, float, float, float, float, float, float]
    tcp: Vector3
    tcp_spread: Vector3


@dataclass(frozen=True)
class TableConfig:
    size: Range
    centre: Range
    colours: tuple[Vector3, Vector3]


@dataclass(frozen=True)
class CubesConfig:
    colours: tuple[str, ...]
    size: float
    mass: float


@dataclass(frozen=True)
class DishesConfig:
    """Plates or bowls."""

    colours: tuple[str, ...]
    radius: float
    height: float
    mass: float


@dataclass(frozen=True)
class ObjectsConfig:
    cubes: CubesConfig
    plates: DishesConfig
    bowls: DishesConfig


@dataclass(frozen=True)
class CameraConfig:
    """A pinhole camera; `mount` is world, or hand for one per arm. Position and look_at in the mount's frame."""

    sensor: str
    position: Vector3
    look_at: Vector3
    vertical_fov: float
    mount: str = "world"

    def __post_init__(self) -> None:
        if self.mount not in ("world", "hand"):
            raise ValueError(f"mount is {self.mount!r}, expected world or hand")
        if not 0.0 < self.vertical_fov < np.pi:
            raise ValueError(f"vertical_fov is {self.vertical_fov}, expected radians between 0 and pi")


@dataclass(frozen=True)
class SensorConfig:
    """Depth sensor: metres; outside the range there is no reading. `noise` is its standard deviation at 1 m."""

    minimum_range: float
    maximum_range: float
    noise: float


@dataclass(frozen=True)
class ControlConfig:
    """Cartesian impedance, named as crisp_controllers does (pairs: translation, rotation)."""

    stiffness: Range
    damping: Range
    error_clip: Range
    max_delta_tau: float
    nullspace_stiffness: float
    target_filter: float

    def __post_init__(self) -> None:
        if not 0.0 < self.target_filter <= 1.0:
            raise ValueError(f"target_filter is {self.target_filter}, expected a share above 0 and up to 1")


@dataclass(frozen=True)
class GripperConfig:
    maximum_width: float
    maximum_speed: float
    latency: float
    settle_time: float
    move_force: float
    grasp_force: float
    maximum_force: float


@dataclass(frozen=True)
class ReflexConfig:
    """Beyond any of these the arm stops following until it is recovered."""

    contact_force: float
    position_error: float
    rotation_error: float
    force_time_constant: float


@dataclass(frozen=True)
class OperatorConfig:
    """How the scripted operator moves; the scene file explains every entry."""

    step_period: float
    speed: float
    turn_speed: float
    slow_down: float
    hover: float
    funnel_slope: float
    funnel_slack: float
    align_tolerance: float
    tolerance: float
    in_hand: tuple[float, float, float]
    open_width: float
    hand_speed: float
    closed_width: float
    retry_height: float
    lift_height: float
    release_tolerance: float
    release_height: float
    pusher_half_thickness: float
    push_height: float
    push_slack: float
    push_gap: float
    push_beyond: float


def _check_instruction(instruction: str, *words: str) -> None:
    try:
        instruction.format(**dict.fromkeys(words, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"instruction {instruction!r} may name {{{'}, {'.join(words)}}} and nothing else") from error


@dataclass(frozen=True)
class PickConfig:
    instruction: str
    defaults: tuple[str]
    cube_area: Area
    cube_yaw: float
    other_cubes: int
    other_bowls: int
    separation: float
    lift: float
    hold_time: float

    def __post_init__(self) -> None:
        _check_instruction(self.instruction, "cube")


@dataclass(frozen=True)
class PlaceConfig:
    instruction: str
    defaults: tuple[str, str]
    cube_area: Area
    plate_area: Area
    cube_yaw: float
    other_cubes: int
    other_bowls: int
    separation: float
    hold_time: float

    def __post_init__(self) -> None:
        _check_instruction(self.instruction, "cube", "plate")


@dataclass(frozen=True)
class PushConfig:
    instruction: str
    defaults: tuple[str, str]
    plate: str
    cube_area: Area
    plate_area: Area
    cube_yaw: float
    other_cubes: int
    other_bowls: int
    separation: float
    margin: float
    hold_time: float

    def __post_init__(self) -> None:
        _check_instruction(self.instruction, "cube", "plate", "side")


@dataclass(frozen=True)
class TasksConfig:
    pick: PickConfig
    place: PlaceConfig
    push: PushConfig


@dataclass(frozen=True)
class SceneConfig:
    """A scene file, e.g. config/scenes/tabletop.yaml, which explains every entry."""

    arms: tuple[ArmConfig, ...]
    home: HomeConfig
    table: TableConfig
    colours: dict[str, Vector3]
    objects: ObjectsConfig
    cameras: dict[str, CameraConfig]
    sensors: dict[str, SensorConfig]
    control: ControlConfig
    gripper: GripperConfig
    reflex: ReflexConfig
    operator: OperatorConfig
    tasks: TasksConfig

    def __post_init__(self) -> None:
        for kind in ("cubes", "plates", "bowls"):
            for colour in getattr(self.objects, kind).colours:
                if colour not in self.colours:
                    raise ValueError(f"objects.{kind}.colours names {colour!r}, which colours does not define")
        for name, camera in self.cameras.items():
            if camera.sensor not in self.sensors:
                raise ValueError(
                    f"cameras.{name}.sensor is {camera.sensor!r}, expected one of {', '.join(self.sensors)}"
                )
        if self.tasks.push.plate not in self.objects.plates.colours:
            known = ", ".join(self.objects.plates.colours)
            raise ValueError(f"tasks.push.plate is {self.tasks.push.plate!r}, expected one of {known}")

    @classmethod
    def load(cls, path: str | Path) -> SceneConfig:
        """Read a scene file; ConfigurationError naming the file and the key on anything wrong."""
        return load_yaml(cls, path)

    @cached_property
    def object_names(self) -> tuple[str, ...]:
        """Every object of the model, e.g. red_cube, blue_plate, in the order of the file."""
        return tuple(
            f"{colour}_{kind}"
            for kind, objects in (
                ("cube", self.objects.cubes),
                ("plate", self.objects.plates),
                ("bowl", self.objects.bowls),
            )
            for colour in objects.colours
        )


def model_prefix(arm_prefix: str) -> str:
    """The prefix of an arm's names in the model and of its frames: 'left/' gives 'left_'."""
    return arm_prefix.replace("/", "_")


def build_model(config: SceneConfig, arm_prefixes: tuple[str, ...] = ("",)) -> mujoco.MjModel:
    """Compile table, arms, objects and cameras; ConfigurationError when there are more prefixes than arms."""
    if not 0 < len(arm_prefixes) <= len(config.arms):
        raise ConfigurationError(f"arms: {len(config.arms)} described, {len(arm_prefixes)} asked for ({arm_prefixes})")
    spec = mujoco.MjSpec()
    _set_options(spec)
    _add_surroundings(spec, config)
    for index, (arm, prefix) in enumerate(zip(config.arms, arm_prefixes, strict=False)):  # there may be more arms
        _add_arm(spec, config, arm, model_prefix(prefix), 2 << index)
    for name in config.object_names:
        _add_object(spec, config, name)
    for name, camera in config.cameras.items():
        if camera.mount == "world":
            _add_camera(spec.worldbody, name, camera)
    return spec.compile()


def _set_options(spec: mujoco.MjSpec) -> None:
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0  # a grasped cube must not creep out of the fingers
    spec.visual.quality.shadowsize = 0  # shadows and multisampling cost more than all the pixels
    spec.visual.quality.offsamples = 0
    spec.visual.global_.offwidth = 1280
    spec.visual.global_.offheight = 720
    spec.visual.headlight.ambient = [0.35, 0.35, 0.35]
    spec.visual.headlight.diffuse = [0.35, 0.35, 0.35]
    spec.visual.headlight.specular = [0.1, 0.1, 0.1]
    spec.stat.extent = 1.0  # makes the two below metres
    spec.visual.map.znear = 0.01
    spec.visual.map.zfar = 20.0


def _add_surroundings(spec: mujoco.MjSpec, config: SceneConfig) -> None:
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.50, 0.54, 0.58], rgb2=[0.30, 0.32, 0.35], width=64, height=64,
    )  # fmt: skip
    light, dark = config.table.colours
    spec.add_texture(
        name="table", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=light, rgb2=dark, width=128, height=128,
        mark=mujoco.mjtMark.mjMARK_RANDOM, markrgb=[0.5 * c for c in dark], random=0.004,
    )  # fmt: skip
    table = spec.add_material(name="table", texrepeat=[8, 8], specular=0.1, shininess=0.1)
    table.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "table"
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=[-0.4, 0.3, -1.0], diffuse=[0.5, 0.5, 0.5], castshadow=False
    )
    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, material="table", pos=[*config.table.centre, 0.0],
        size=[config.table.size[0] / 2, config.table.size[1] / 2, 0.05], friction=[0.8, 0.005, 0.0001],
        contype=ENVIRONMENT_BIT, conaffinity=0xFF,
    )  # fmt: skip


def _assets() -> Path:
    package = importlib.util.find_spec("dm_robotics.panda")
    if package is None or package.origin is None:
        raise ConfigurationError("the arm's model is missing: install the Python package dm-robotics-panda")
    return Path(package.origin).parent / "assets" / "panda"


def _load_part(file_name: str) -> mujoco.MjSpec:
    directory = _assets()
    spec = mujoco.MjSpec.from_file(str(directory / file_name))
    spec.meshdir = spec.texturedir = str(directory)
    for mesh in spec.meshes:
        mesh.maxhullvert = HULL_VERTICES
    for geom in spec.geoms:  # hulls carry no texture coordinates, and both parts bring the same material
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH:
            geom.material = ""
            geom.rgba = LINK_RGBA if "link" in geom.meshname else HAND_RGBA
    for unused in [*spec.materials, *spec.textures]:
        spec.delete(unused)
    return spec


def _add_arm(spec: mujoco.MjSpec, config: SceneConfig, arm: ArmConfig, prefix: str, contact_bit: int) -> None:
    """Arm with seven motors and hand at its base; names start with `prefix`."""
    panda, hand = _load_part("panda.xml"), _load_part("panda_hand.xml")
    for sensor in list(panda.sensors):
        panda.delete(sensor)
    for actuator in list(hand.actuators):
        hand.delete(actuator)
    hand.delete(hand.site("wrist_site"))
    panda.joint("panda_joint6").damping = [0.05, 0.0, 0.0]  # negative in the asset
    for number in range(1, 8):
        panda.add_actuator(
            name=f"panda_joint{number}", target=f"panda_joint{number}", trntype=mujoco.mjtTrn.mjTRN_JOINT
        )
    _add_fingers_servo(hand, config.gripper)
    half_turn = 0.5 * -np.pi / 4
    flange = panda.body("panda_link8").add_frame(quat=[np.cos(half_turn), 0, 0, np.sin(half_turn)])
    panda.attach(hand, prefix="", frame=flange)
    for geom in panda.geoms:
        geom.contype, geom.conaffinity = (contact_bit, 0xFF & ~contact_bit) if geom.contype else (0, 0)
    for name, camera in config.cameras.items():
        if camera.mount == "hand":
            _add_camera(panda.body("panda_hand"), name, camera)
    half_yaw = 0.5 * arm.base_yaw
    base = spec.worldbody.add_frame(pos=arm.base_position, quat=[np.cos(half_yaw), 0, 0, np.sin(half_yaw)])
    spec.attach(panda, prefix=prefix, frame=base)


def _add_fingers_servo(hand: mujoco.MjSpec, gripper: GripperConfig) -> None:
    """One servo on the mean finger travel (half the width), whose force range the gripper sets at run time."""
    gain, damping = 5000.0, 46.0  # critically damped with the fingers' armature
    hand.add_actuator(
        name="panda_hand", target="split", trntype=mujoco.mjtTrn.mjTRN_TENDON,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED, gainprm=[gain] + [0.0] * 9,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE, biasprm=[0.0, -gain, -damping] + [0.0] * 7,
        forcelimited=True, forcerange=[-2 * gripper.move_force, 2 * gripper.move_force],
        ctrllimited=True, ctrlrange=[0.0, gripper.maximum_width / 2],
    )  # fmt: skip
    for side in ("left", "right"):
        pad = hand.geom(f"panda_{side}finger_collision")
        pad.group = HIDDEN_GROUP
        pad.condim = 4
        pad.friction = [1.2, 0.02, 0.0001]
        pad.priority = 1  # rubber on anything is as hard and rough as the rubber
        pad.solref = [0.004, 1.0]
        pad.solimp = [0.98, 0.995, 0.0005, 0.5, 2.0]


def _add_object(spec: mujoco.MjSpec, config: SceneConfig, name: str) -> None:
    colour, kind = name.rsplit("_", 1)
    body = spec.worldbody.add_body(name=name, pos=PARKING)
    body.add_freejoint(name=name)
    rgba = [*config.colours[colour], 1.0]
    if kind == "cube":
        _add_cube(body, config.objects.cubes, rgba)
    elif kind == "plate":
        _add_plate(body, config.objects.plates, rgba)
    else:
        _add_bowl(body, config.objects.bowls, rgba)


def _add_cube(body: mujoco.MjsBody, cubes: CubesConfig, rgba: list[float]) -> None:
    half = cubes.size / 2
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, size=[half] * 3, mass=cubes.mass, rgba=rgba,
        condim=4, friction=[1.0, 0.01, 0.0001], contype=ENVIRONMENT_BIT, conaffinity=0xFF,
    )  # fmt: skip


def _add_plate(body: mujoco.MjsBody, plates: DishesConfig, rgba: list[float]) -> None:
    """A disc, origin at its foot, with a lighter well drawn on it."""
    half = plates.height / 2
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=[0, 0, half], size=[plates.radius, half, 0], mass=plates.mass,
        rgba=rgba, friction=[0.9, 0.005, 0.0001], contype=ENVIRONMENT_BIT, conaffinity=0xFF,
    )  # fmt: skip
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=[0, 0, plates.height], size=[0.72 * plates.radius, 0.0005, 0],
        mass=0.0, rgba=[0.45 + 0.55 * c for c in rgba], contype=0, conaffinity=0,
    )  # fmt: skip


def _add_bowl(body: mujoco.MjsBody, bowls: DishesConfig, rgba: list[float]) -> None:
    """A foot and a ring of slabs leaning outwards, origin at the foot."""
    slabs, thickness, lean = 12, 0.003, 0.35
    common = dict(rgba=rgba, contype=ENVIRONMENT_BIT, conaffinity=0xFF)
    foot = 0.7 * bowls.radius
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0, 0, thickness],
        size=[foot, thickness, 0],
        mass=bowls.mass / 2,
        **common,
    )
    half_height = bowls.height / 2 / np.cos(lean)
    for i in range(slabs):
        angle = 2 * np.pi * i / slabs
        middle = foot + half_height * np.sin(lean)
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, size=[thickness, middle * np.tan(np.pi / slabs) + thickness, half_height],
            pos=[middle * np.cos(angle), middle * np.sin(angle), bowls.height / 2 + thickness],  # the foot stands alone
            quat=_compose_z_then_y(angle, lean), mass=bowls.mass / 2 / slabs, **common,
        )  # fmt: skip


def _compose_z_then_y(yaw: float, pitch: float) -> np.ndarray:
    quaternion = np.empty(4)
    mujoco.mju_mulQuat(
        quaternion,
        np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]),
        np.array([np.cos(pitch / 2), 0, np.sin(pitch / 2), 0]),
    )
    return quaternion


def _add_camera(body: mujoco.MjsBody, name: str, camera: CameraConfig) -> None:
    """MuJoCo's camera looks along -z with y up; up is where the world's z points, or the hand's -z."""
    backward = np.subtract(camera.position, camera.look_at)
    backward /= np.linalg.norm(backward)
    up = np.array([0.0, 0.0, 1.0]) if camera.mount == "world" else np.array([0.0, 0.0, -1.0])
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    rotation = np.column_stack([right, np.cross(backward, right), backward])
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    body.add_camera(name=name, pos=camera.position, quat=quaternion, fovy=np.rad2deg(camera.vertical_fov))
