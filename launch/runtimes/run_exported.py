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
    if x.dtype == np.uint8 and made:  # images as they are; others are taken as normalised already
        x = (x - np.float32(made["mean"])) / np.float32(made["deviation"])
    session = onnxruntime.InferenceSession(str(here / "model.onnx"))
    size = len(x) if about["batch"] == "any" else about["batch"]
    for part in np.split(x.astype(about["input"]["type"]), range(size, len(x), size)):
        for logits in session.run(None, {"input": part})[0]:
            print(names[logits.argmax()] if names else logits.argmax(), *np.round(logits, 4))


if __name__ == "__main__":
    main()
