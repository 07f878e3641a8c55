"""Joint angles to the tool, against the simulated arm whose kinematics the real one shares."""

from pathlib import Path

import mujoco
import numpy as np
import pytest
from franka_sim.scene import SceneConfig, build_model
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from teleop_recorder.kinematics import JOINTS, tcp_pose
from teleop_recorder.teleop import TeleopError

SCENE = Path(__file__).resolve().parents[3] / "config/scenes/tabletop.yaml"
MODEL = build_model(SceneConfig.load(SCENE), ("",))
DATA = mujoco.MjData(MODEL)
FIRST = int(MODEL.joint("panda_joint1").qposadr[0])
SITE = MODEL.site("TCP").id


@given(st.lists(st.floats(-2.8, 2.8), min_size=JOINTS, max_size=JOINTS))
def test_tool_is_where_the_simulated_one_is(q):
    DATA.qpos[FIRST : FIRST + JOINTS] = q
    mujoco.mj_kinematics(MODEL, DATA)
    position, rotation = tcp_pose(q)
    np.testing.assert_allclose(position, DATA.site_xpos[SITE], atol=1e-4)
    simulated = Rotation.from_matrix(DATA.site_xmat[SITE].reshape(3, 3))
    assert (rotation * simulated.inv()).magnitude() < 1e-3


@pytest.mark.parametrize("q", [[0.0] * 6, [0.0] * 8, [float("nan")] * 7])
def test_angles_that_are_no_posture_are_refused(q):
    with pytest.raises(TeleopError, match="joint angles"):
        tcp_pose(q)
