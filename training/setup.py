from setuptools import find_packages, setup

setup(
    name="molmoact_training",
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/molmoact_training"]),
        ("share/molmoact_training", ["package.xml"]),
    ],
    install_requires=[
        "setuptools",
        "accelerate",
        "numpy",
        "peft",
        "pillow",
        "psutil",
        "pydantic",
        "pyyaml",
        "safetensors",
        "scipy",
        "tokenizers",
        "torch",
        "transformers",
    ],
    zip_safe=True,
    maintainer="MolmoAct ROS maintainers",
    maintainer_email="maintainers@molmoact-ros.org",
    description="From demonstrations to a post-trained action reasoning model.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": ["replay = molmoact_training.evaluation.replay_node:main"],
        "molmoact.commands": [
            "annotate = molmoact_training.annotate:main",
            "calibrate = molmoact_training.calibrate:main",
            "depth-vqvae = molmoact_training.depth_command:main",
            "evaluate = molmoact_training.evaluation.command:main",
            "merge = molmoact_training.merging:main",
            "train = molmoact_training.train:main",
        ],
    },
)
