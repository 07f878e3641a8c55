import pytest
from franka_sim.parameters import SimulatorParameters, require_length
from molmoact_ros.errors import ConfigurationError


def test_a_list_of_another_length_than_the_cameras_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="parameter 'camera_widths': 1 entries, expected 2 as in 'cameras'"):
        SimulatorParameters(camera_widths=(640,)).camera_settings()


def test_every_camera_gets_its_own_settings():
    front, wrist = SimulatorParameters(camera_heights=(480, 240), camera_depth=(True, False)).camera_settings()
    assert (front.name, front.height, front.depth) == ("front", 480, True)
    assert (wrist.name, wrist.height, wrist.depth) == ("wrist", 240, False)


def test_arms_and_prefixes_have_to_match():
    with pytest.raises(ConfigurationError, match="parameter 'arm_prefixes'"):
        require_length("arm_prefixes", ("left/", "right/"), "arms", ("fr3",))
