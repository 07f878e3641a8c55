from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "molmoact_policy"


def checkpoint_files() -> list[tuple[str, list[str]]]:
    """Every file below checkpoints/ at the same place below share/; none before one has been trained."""
    files = sorted(path for path in Path("checkpoints").rglob("*") if path.is_file())
    return [(f"share/{PACKAGE}/{path.parent.as_posix()}", [path.as_posix()]) for path in files]


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={PACKAGE: ["qwen2_vocabulary.txt.xz"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        *checkpoint_files(),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="MolmoAct ROS maintainers",
    maintainer_email="maintainers@molmoact-ros.org",
    description="An action reasoning model as a ROS 2 policy: images and an instruction in; chunks of actions out.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": ["policy = molmoact_policy.node:main"],
        "molmoact.commands": ["predict = molmoact_policy.predict:main", "checkpoint = molmoact_policy.inspection:main"],
    },
)
