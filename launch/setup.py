from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "molmoact_bringup"
CONFIG = Path("..") / "config"  # the repository's one source of settings; setup.py runs in the package's directory


def config_files() -> list[tuple[str, list[str]]]:
    """Every YAML and XML file under config/, installed in the same folders below share/."""
    folders: dict[str, list[str]] = {}
    for file in sorted(CONFIG.rglob("*")):
        if file.suffix in (".yaml", ".xml"):
            folder = file.parent.relative_to(CONFIG).as_posix()
            folders.setdefault(f"share/{PACKAGE}/config/{folder}".removesuffix("/."), []).append(str(file))
    return sorted(folders.items())


setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        ("bin", ["bin/molmoact"]),  # unlike lib/, colcon puts this on the PATH
        (f"share/{PACKAGE}/launch", sorted(str(file) for file in Path("launch").glob("*.launch.py"))),
        *config_files(),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="MolmoAct ROS maintainers",
    maintainer_email="maintainers@molmoact-ros.org",
    description="Which nodes make a system, how to start them, their configuration, and the demo.",
    license="Apache-2.0",
    entry_points={
        "molmoact.commands": [
            "up = molmoact_bringup.local:main",
            "demo = molmoact_bringup.demo:main",
            "record = molmoact_bringup.record:main",
        ],
    },
)
