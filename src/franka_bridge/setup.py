from setuptools import find_packages, setup

setup(
    name="franka_bridge",
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/franka_bridge"]),
        ("share/franka_bridge", ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy", "ruckig"],
    zip_safe=True,
    maintainer="MolmoAct ROS maintainers",
    maintainer_email="maintainers@molmoact-ros.org",
    description="The safety layer: the only publisher of Cartesian targets for Franka arms.",
    license="Apache-2.0",
    entry_points={"console_scripts": ["franka_bridge = franka_bridge.node:main"]},
)
