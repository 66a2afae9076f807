"""Classifies examples with the network beside this file; needs NumPy and ONNX Runtime. Usage: run.py EXAMPLES.npy"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime


def main() -> None:
    """Prints the class and the logits of each example of the file that the command line names."""
    here = pathlib.Path(__file__).parent
    about = json.loads((here / "export.json").read_text())
    x, made, names = np.load(sys.argv[1]), about["input"]["normalization"], about["output"]["class_names"]
    kind = np.dtype(about["input"]["type"])
    if x.dtype == np.uint8 and isinstance(made, dict):  # images as they are; others are taken as normalised already
        x = (x - np.float32(made["mean"])) / np.float32(made["deviation"])
    if kind == np.uint8 and x.dtype != np.uint8:
        sys.exit(f"{sys.argv[1]} has {x.dtype}: expected uint8, images as they are")
    session = onnxruntime.InferenceSession(str(here / "model.onnx"))
    size = len(x) if about["batch"] == "any" else about["batch"]
    for part in np.split(x.astype(kind), range(size, len(x), size)):
        for logits in session.run(None, {"input": part})[0]:
            best = logits.argmax(-1) if logits.ndim and logits.shape[-1] > 1 else np.int32(logits > 0)
            print(names[best] if names and best.ndim == 0 else best, *np.round(logits, 4).ravel())


if __name__ == "__main__":
    main()
