"""Stores what the real torchvision and timm networks compute, with weights that anyone can make again from their names.

    pip install torch torchvision timm && python tests/golden/make_torch_outputs.py

Needs PyTorch, which neither the project nor its tests need: they build the same weights under the same names, load them
and compare with torch_outputs.npz.
"""

import pathlib
import zlib

import numpy as np

SIZES = {
    "resnet18": 64, "resnet34": 64, "resnet50": 64, "mobilenetv2": 64, "efficientnet_b0": 64, "efficientnet_b4": 64,
    "inception_v3": 107, "deit_ti16": 224, "deit_s16": 224,
}  # fmt: skip


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that are a function of a parameter's PyTorch name and shape alone, and keep activations in bounds."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + 0.5 * np.tanh(noise)
    if len(shape) > 1:
        return noise * np.float32(1.4 / np.sqrt(np.prod(shape[1:])))
    return (1 if name.endswith("weight") else 0) + 0.1 * noise


def image(size: int) -> np.ndarray:
    """float32[1, size, size, 3]."""
    return np.random.default_rng(size).standard_normal((1, size, size, 3)).astype(np.float32)


def main() -> None:
    """Computes and stores the logits."""
    import timm
    import torch
    import torchvision

    builders = {
        "mobilenetv2": torchvision.models.mobilenet_v2,
        "inception_v3": lambda: torchvision.models.inception_v3(aux_logits=False, init_weights=False),
        "deit_ti16": lambda: timm.create_model("deit_tiny_patch16_224"),
        "deit_s16": lambda: timm.create_model("deit_small_patch16_224"),
    }
    outputs = {}
    for name, size in SIZES.items():
        model = builders.get(name) or getattr(torchvision.models, name)
        network = model().eval()
        state = {
            key: torch.from_numpy(weights(key, tuple(value.shape))) if value.is_floating_point() else value
            for key, value in network.state_dict().items()
        }
        network.load_state_dict(state)
        with torch.no_grad():
            logits = network(torch.from_numpy(image(size).transpose(0, 3, 1, 2).copy()))
        outputs[name] = logits[0].numpy()
        print(name, outputs[name][:4], float(outputs[name].std()))
    np.savez_compressed(pathlib.Path(__file__).with_name("torch_outputs.npz"), **outputs)


if __name__ == "__main__":
    main()
