"""Build metadata. The versions that are tested together are in requirements/tested.txt; here are the open ranges."""

from setuptools import find_packages, setup

PACKAGES = ("bootstrapnas", "eftnas", "lonas", "plm_nas", "mos")

REQUIRES = [
    "torch>=2.6",  # what transformers 5 asks for
    "transformers>=5.0",  # attention infers the number of heads from the width of its projections
    "nncf>=3.0",  # post-training quantisation and weight compression without the monkey-patching of 2.x
    "openvino>=2025.0",  # what nncf 3 is released for
    "pymoo>=0.6.1",  # ask/tell with one random state per algorithm
    "pydantic>=2",
    "pyjson5",  # NNCF configurations as published: comments and trailing commas
    "safetensors",
    "datasets",
    "peft>=0.18",
    "accelerate>=1.1",  # what the Trainer of transformers 5 asks for
    "scikit-learn",
    "scipy",
    "torchmetrics",  # SQuAD's exact match and F1
    "matplotlib",
    "rich",
    "pyyaml",
]

EXTRAS = {
    # With it, exports carry the tokenizer as an IR too.
    "tokenizers": ["openvino-tokenizers>=2025.0"],
    # Runs exported language models; the tests compare with it.
    "genai": ["openvino-genai>=2025.0"],
    # Measures language models by its tasks, whose data are on the hub.
    "lm_eval": ["lm-eval>=0.4.13"],
    "onnx": ["onnx", "onnxruntime", "onnxscript"],  # onnxscript: what torch's exporter is written in
    # Their docstrings are texts of the built-in data set.
    "quickstart": ["networkx", "pandas", "sympy"],
    "dev": [
        "hypothesis",
        "import-linter",
        "jsonschema",
        "mypy",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "types-PyYAML",
    ],
}

setup(
    name="bootstrapnas",
    version="0.1.0",
    description="Make Transformer language models truly smaller: elastic supernets, subnet search, OpenVINO export",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    package_data={"bootstrapnas": ["py.typed"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "bootstrapnas = bootstrapnas.cli:main",
            "eftnas = eftnas.cli:main",
            "lonas = lonas.cli:main",
        ]
    },
)
