"""optimum-benchmark on a folder with an ONNX file, in an environment of its own:

    PYTHON benchmarks/_optimum.py FOLDER SEQUENCE SECONDS LAUNCHER

Prints one JSON document as the last line: the seconds of every inference, and the versions. It
imports nothing of this repository. One optimum-benchmark (0.6.0) looks for a table where newer
versions of optimum no longer keep it: the one line of it that is needed here is put there. The
process that it measures in imports this file anew, and so has it too.
"""

import json
import os
import sys
from importlib import metadata

os.environ["LOG_TO_FILE"] = "0"

import optimum.pipelines
from optimum.onnxruntime import ORTModelForFeatureExtraction

if not hasattr(optimum.pipelines, "ORT_SUPPORTED_TASKS"):
    optimum.pipelines.ORT_SUPPORTED_TASKS = {
        "feature-extraction": {"class": (ORTModelForFeatureExtraction,)}
    }

from optimum_benchmark import (
    Benchmark,
    BenchmarkConfig,
    InferenceConfig,
    InlineConfig,
    ORTConfig,
    ProcessConfig,
)

WARMUP_RUNS = 20
LAUNCHERS = {"process": ProcessConfig, "inline": InlineConfig}
PACKAGES = ("optimum-benchmark", "optimum", "optimum-onnx", "onnxruntime", "torch", "transformers")


def main() -> None:
    folder, sequence, seconds, launcher = sys.argv[1:]
    backend = ORTConfig(
        model=folder,
        device="cpu",
        task="feature-extraction",
        library="transformers",
        session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
    scenario = InferenceConfig(
        latency=True,
        memory=False,
        warmup_runs=WARMUP_RUNS,
        duration=float(seconds),
        iterations=10,
        input_shapes={"batch_size": 1, "sequence_length": int(sequence)},
    )
    report = Benchmark.launch(
        BenchmarkConfig(
            name="measure", scenario=scenario, launcher=LAUNCHERS[launcher](), backend=backend
        )
    )
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    print(json.dumps({"samples": report.forward.latency.values, "versions": found}))


if __name__ == "__main__":
    main()
