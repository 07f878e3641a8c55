"""What a package imports is what its package.xml asks for: the wheels hide what a workstation would then lack."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ament_index_python.packages import get_packages_with_prefixes

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted(
    [*ROOT.glob("src/**/package.xml"), ROOT / "launch" / "package.xml", ROOT / "training" / "package.xml"]
)
PYTHON_MANIFESTS = [manifest for manifest in MANIFESTS if (manifest.parent / "setup.py").exists()]
# rosdep keys of modules that a distribution packages; a workstation has the others from requirements.txt as well.
ROSDEP_KEYS = {
    "PIL": "python3-pil",
    "cv2": "python3-opencv",
    "numpy": "python3-numpy",
    "scipy": "python3-scipy",
    "yaml": "python3-yaml",
}


def package_name(manifest: Path) -> str:
    return ElementTree.parse(manifest).findtext("name", "")


def run_time_dependencies(manifest: Path) -> set[str]:
    root = ElementTree.parse(manifest)
    return {element.text or "" for tag in ("depend", "exec_depend") for element in root.iter(tag)}


def imported_modules(package: Path) -> set[str]:
    """Top-level modules imported anywhere in a package, the standard library and the package itself left out."""
    modules = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add((node.module or "").partition(".")[0])
    return modules - sys.stdlib_module_names - {package.name}


@pytest.mark.parametrize("manifest", PYTHON_MANIFESTS, ids=package_name)
def test_every_import_is_a_declared_dependency(manifest):
    ros_packages = {*get_packages_with_prefixes(), *map(package_name, MANIFESTS)}
    imported = imported_modules(manifest.parent / package_name(manifest))
    needed = {ROSDEP_KEYS.get(module, module) for module in imported if module in ros_packages or module in ROSDEP_KEYS}
    assert needed - run_time_dependencies(manifest) == set()


@pytest.mark.parametrize("manifest", MANIFESTS, ids=package_name)
def test_packages_share_version_and_licence(manifest):
    root = ElementTree.parse(manifest)
    assert (root.findtext("version"), root.findtext("license")) == ("0.1.0", "Apache-2.0")
