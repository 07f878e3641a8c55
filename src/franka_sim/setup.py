from setuptools import find_packages, setup

setup(
    name="franka_sim",
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/franka_sim"]),
        ("share/franka_sim", ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy", "scipy", "pyyaml", "mujoco"],
    zip_safe=True,
    maintainer="MolmoAct ROS maintainers",
    maintainer_email="maintainers@molmoact-ros.org",
    description="Simulated Franka arms, grippers and RealSense cameras on the interfaces of the real drivers.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "franka_sim = franka_sim.node:main",
            "scripted_teleop = franka_sim.scripted_teleop:main",
        ],
    },
)
