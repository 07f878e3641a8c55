from setuptools import find_packages, setup

PACKAGE = "teleop_recorder"

setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="MolmoAct ROS maintainers",
    maintainer_email="maintainers@molmoact-ros.org",
    description="Teleoperation, and recording of topics as they are into rosbag2 directories with MCAP storage.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "recorder = teleop_recorder.node:main",
            "teleop_keyboard = teleop_recorder.teleop_node:keyboard_main",
            "teleop_gamepad = teleop_recorder.teleop_node:gamepad_main",
            "teleop_spacemouse = teleop_recorder.teleop_node:spacemouse_main",
            "teleop_leader = teleop_recorder.teleop_node:leader_main",
        ],
        "molmoact.commands": [
            "episodes = teleop_recorder.commands:main",
            "teleop = teleop_recorder.teleop_command:main",
        ],
    },
)
