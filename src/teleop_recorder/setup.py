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
    description="Records topics as they are into rosbag2 directories with MCAP storage.",
    license="Apache-2.0",
)
