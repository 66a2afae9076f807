"""Images per second and core of the input stream, against earlier versions of it and other libraries; and its memory.

    python -m benchmarks.input_stream [--earlier=CHECKOUT] [--torchvision=PYTHON] [--tf=PYTHON] [--opencv=PYTHON]
    python -m benchmarks.input_stream memory --folder=DIR [--batches=200]

PYTHON is the interpreter of an environment that has the library (and Pillow); CHECKOUT is a folder with an earlier
version of this repository. The images are JPEGs of 500 × 375 pixels and 100 KB, made here, in array records with the
features of tfds's `imagenet2012`. All give uint8 images of 224 × 224: a random region, resized by cubic interpolation
(OpenCV's does not average where it reduces, so it is there in two ways), mirrored at random, in batches of 128. Each
path is a process of its own; they work in turn, a few hundred images at a time, and what counts is processor time, so
that others on the machine disturb little. Writes results/input_stream.json beside this file.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

RESULTS = pathlib.Path(__file__).parent / "results" / "input_stream.json"
HEIGHT, WIDTH, SIDE, BATCH = 375, 500, 224, 128
FILES, ROUNDS = 256, 5
IMAGENET = {"train": 1_281_167, "validation": 50_000}  # examples
# Images that ResNet-50 searches per second and device, each trained on; validation images are decoded once.
NEEDED = {"one H100": 1900, "eight TPU v5e": 8 * 1900}


def jpegs(count: int) -> list[bytes]:
    """Files of about 100 KB: smooth colours, texture and noise."""
    rng = np.random.default_rng(0)

    def smooth(rows: int, columns: int) -> np.ndarray:
        small = Image.fromarray(rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8))
        return np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)

    files = []
    for _ in range(count):
        image = smooth(12, 16) + 0.4 * (smooth(94, 125) - 128) + rng.normal(0, 13, (HEIGHT, WIDTH, 3))
        buffer = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def prepare(folder: pathlib.Path) -> None:
    """Makes the images, as files and as records that tfds reads, if they are not there."""
    if (folder / "done").exists():
        return
    import tensorflow_datasets as tfds

    files = jpegs(FILES)
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        (folder / "files" / f"{i:05}.jpg").write_bytes(file)

    def examples(_: Any = None) -> Iterator[tuple[str, dict[str, Any]]]:
        for i, file in enumerate(files):
            yield f"{i:05}.JPEG", {"file_name": f"{i:05}.JPEG", "image": io.BytesIO(file), "label": i % 1000}

    builder: Any = tfds.builder("imagenet2012", data_dir=folder, file_format="array_record")
    builder._split_generators = lambda _: {"train": examples(), "validation": examples()}
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(register_checksums=False))
    (folder / "done").touch()


class Repeated:
    """Records of a data source again and again, as many as ImageNet has."""

    def __init__(self, records: Sequence[Any], count: int) -> None:
        self._records, self._count = records, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._records[index % len(self._records)]


def config_of(folder: pathlib.Path, **changes: Any) -> Any:
    """The experiment of the paper's Table 4 on the images of this benchmark."""
    from configs import fliqs_imagenet

    config = fliqs_imagenet.get_config("resnet50")
    config.data.data_dir = str(folder)
    config.data.update(changes)
    return config


def opened(config: Any) -> Any:
    """The data set of a config, with as many records as ImageNet has."""
    from launch import data
    from launch.data import images

    class Repeating(images.Stream):
        def __init__(self, pool: Any, test: Any, **rest: Any) -> None:
            counts = IMAGENET["train"], IMAGENET["validation"]
            records: list[Any] = [Repeated(part, count) for part, count in zip((pool, test), counts, strict=True)]
            super().__init__(*records, **rest)

    images.Stream = Repeating
    return data.find(config.data).open(valid_examples=config.data.valid_examples, seed=config.seed)


def ours(folder: pathlib.Path, **changes: Any) -> Iterator[np.ndarray]:
    """Batches of the stream of the launch package that is on the path, of this version or of an earlier one."""
    dataset = opened(config_of(folder, workers=0, **changes))
    for batch in dataset.train_batches("train", batch_size=BATCH, first_step=0, augmented=True):
        yield batch["input"]


def files_of(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files in random order, without end."""
    rng, paths = np.random.default_rng(0), sorted((folder / "files").iterdir())
    while True:
        yield from rng.permutation(np.asarray(paths))


def torchvision(folder: pathlib.Path) -> Iterator[Any]:
    """torchvision's transforms of Pillow images in torch's loader."""
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    class Files(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return (transform(Image.open(path).convert("RGB")) for path in files_of(folder))

    return iter(torch.utils.data.DataLoader(Files(), batch_size=BATCH))


def tf(folder: pathlib.Path) -> Iterator[Any]:
    """tf.data with `decode_and_crop_jpeg`, which decodes the region alone."""
    import tensorflow

    def read(path: Any) -> Any:
        file = tensorflow.io.read_file(path)
        top_left, size, _ = tensorflow.image.sample_distorted_bounding_box(
            tensorflow.io.extract_jpeg_shape(file),
            tensorflow.zeros([0, 0, 4]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tensorflow.stack([top_left[0], top_left[1], size[0], size[1]])
        image = tensorflow.image.decode_and_crop_jpeg(file, window, channels=3)
        image = tensorflow.image.resize(image, (SIDE, SIDE), "bicubic")
        image = tensorflow.image.random_flip_left_right(image)
        return tensorflow.cast(tensorflow.clip_by_value(tensorflow.round(image), 0, 255), tensorflow.uint8)

    paths = [str(path) for path in sorted((folder / "files").iterdir())]
    options = tensorflow.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    files = tensorflow.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    return iter(files.map(read, num_parallel_calls=1).batch(BATCH).with_options(options))


def opencv(folder: pathlib.Path, *, averages: bool = True) -> Iterator[np.ndarray]:
    """OpenCV: decodes, cuts out, resizes as our `simplejpeg` does (it averages where it reduces), or always cubic."""
    import cv2

    cv2.setNumThreads(1)
    rng, paths = np.random.default_rng(0), files_of(folder)

    def read(path: pathlib.Path) -> np.ndarray:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
        while True:
            area, shape = HEIGHT * WIDTH * rng.uniform(0.08, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            rows, columns = round(np.sqrt(area / shape)), round(np.sqrt(area * shape))
            if rows <= HEIGHT and columns <= WIDTH:
                break
        top, left = rng.integers(HEIGHT - rows + 1), rng.integers(WIDTH - columns + 1)
        reduces = averages and min(rows, columns) >= SIDE
        way = cv2.INTER_AREA if reduces else cv2.INTER_CUBIC
        image = cv2.resize(image[top : top + rows, left : left + columns], (SIDE, SIDE), interpolation=way)
        return image[:, ::-1] if rng.integers(2) else image

    while True:
        yield np.stack([read(next(paths)) for _ in range(BATCH)])


PATHS: dict[str, Callable[[pathlib.Path], Iterator[Any]]] = {
    "ours": ours,
    "simplejpeg": functools.partial(ours, decoder="simplejpeg"),
    "torchvision": torchvision,
    "tf": tf,
    "opencv": opencv,
    "opencv, cubic": functools.partial(opencv, averages=False),
}


def serve(path: str, folder: pathlib.Path) -> None:
    """Reads two batches for each line of the standard input, and tells the processor seconds per image.

    They count from the end of the turn before, since what reads ahead goes on after it.
    """
    batches = PATHS[path](folder)
    next(batches)
    print("ready", flush=True)
    end = time.process_time()
    for _ in sys.stdin:
        count = sum(len(next(batches)) for _ in range(2))
        start, end = end, time.process_time()
        print((end - start) / count, flush=True)


class Worker:
    """A process that serves a path."""

    def __init__(self, path: str, folder: pathlib.Path, python: str, checkout: pathlib.Path) -> None:
        command = [python, __file__, "serve", f"--path={path}", f"--folder={folder}"]
        environment = os.environ | {"PYTHONPATH": str(checkout), "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line[0].isdigit() or line.startswith("ready"):
                return line
        raise RuntimeError(f"{self._process.args} ended")

    def seconds(self) -> float:
        """Processor seconds per image of a few hundred images."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def per_image(arguments: argparse.Namespace) -> dict[str, float]:
    """Median processor milliseconds per image of each path that there is an interpreter for, in turn."""
    here, folder = pathlib.Path(__file__).parents[1], arguments.folder
    workers = {"ours, Pillow": Worker("ours", folder, sys.executable, here)}
    if arguments.earlier:
        workers["ours, earlier"] = Worker("ours", folder, sys.executable, arguments.earlier)
    if arguments.simplejpeg:
        workers["ours, simplejpeg"] = Worker("simplejpeg", folder, arguments.simplejpeg, here)
    for name in ("torchvision", "tf", "opencv", "opencv, cubic"):
        if python := getattr(arguments, name.split(",")[0]):
            workers[name] = Worker(name, folder, python, folder)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(ROUNDS + 1):
        for name, worker in workers.items():
            found = worker.seconds()
            if turn:  # The first one warms up.
                seconds[name].append(found)
    for worker in workers.values():
        worker.end()
    return {name: 1000 * statistics.median(found) for name, found in seconds.items()}


def differences(folder: pathlib.Path) -> dict[str, Any]:
    """Mean and largest difference of the decoders, in grey levels, over central and random regions of all files."""
    from launch.data import decoding
    from launch.data.augmentation import central_region, random_region

    size, found = (SIDE, SIDE), []
    for i, path in enumerate(sorted((folder / "files").iterdir())):
        for region in (central_region((HEIGHT, WIDTH), size), random_region((HEIGHT, WIDTH), np.random.default_rng(i))):
            images = [
                decode(path.read_bytes(), lambda _, region=region: region, size, 3)
                for decode in decoding.DECODERS.values()
            ]
            found.append(np.abs(images[0].astype(int) - images[1]))
    versions = [decoding.versions(decode) for decode in decoding.DECODERS.values()]
    mean = round(float(np.mean(found)), 2)
    return {"mean_grey_levels": mean, "largest_grey_levels": int(np.max(found)), "versions": versions}


class Peak:
    """Samples the memory of this process and those below: what each has for itself, and its part of what is shared."""

    def __init__(self) -> None:
        self.bytes, self.samples, self._end = 0, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        import psutil

        while not self._end.wait(1.0):
            own, total = psutil.Process(), 0
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.Error, OSError):
                    total += process.memory_full_info().pss
            total += shutil.disk_usage("/dev/shm").used  # chunks that nobody has opened yet, and those of others
            self.bytes, self.samples = max(self.bytes, total), self.samples + 1

    def stop(self) -> int:
        """Ends sampling; the peak in bytes."""
        self._end.set()
        self._thread.join()
        return self.bytes


def memory(folder: pathlib.Path, batches: int, seconds: float) -> dict[str, Any]:
    """Peak memory of all processes over batches of the real config, without the step; stops after so many seconds."""
    config = config_of(folder)
    peak, start = Peak(), time.monotonic()
    dataset = opened(config)
    told = dataset.host_bytes(config.batch_size, config.valid_batch_size)
    streams = [
        dataset.train_batches(split, batch_size=size, first_step=0, augmented=split == "train")
        for split, size in (("train", config.batch_size), ("valid", config.valid_batch_size))
    ]
    for done, (train, valid) in enumerate(zip(*streams, strict=True), start=1):
        print(f"{done} batches, {peak.bytes / 2**30:.2f} GiB, {time.monotonic() - start:.0f} s", flush=True)
        del train, valid
        if done == batches or time.monotonic() - start > seconds:
            break
    return {
        "batches": done,
        "batch_size": config.batch_size,
        "workers": config.data.workers,
        "valid_examples": config.data.valid_examples,
        "peak_gib": round(peak.stop() / 2**30, 2),
        "told_gib": round(told / 2**30, 2),
        "samples": peak.samples,
    }


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "memory", "serve", "differences"), default="speed")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/input_stream"), help="of the images")
    parser.add_argument("--path", choices=PATHS, default="ours", help="what serves")
    parser.add_argument("--earlier", type=pathlib.Path, help="a folder with an earlier version of this repository")
    for name in ("simplejpeg", "torchvision", "tf", "opencv"):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"an interpreter with {name}")
    parser.add_argument("--batches", type=int, default=200, help="of training and of validation, for memory")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which fewer batches will do")
    arguments = parser.parse_args()
    if arguments.what == "serve":
        serve(arguments.path, arguments.folder)
        return
    if arguments.what == "differences":
        print(json.dumps(differences(arguments.folder)))
        return
    prepare(arguments.folder)
    results: dict[str, Any] = {}
    if arguments.what == "memory":
        results["memory"] = memory(arguments.folder, arguments.batches, arguments.seconds)
    else:
        milliseconds = per_image(arguments)
        rates = {name: round(1000 / found) for name, found in milliseconds.items()}
        results = {
            "milliseconds_per_image": {name: round(found, 3) for name, found in milliseconds.items()},
            "images_per_second_and_core": rates,
            "cores_for": {
                place: {name: round(rate / rates[name], 1) for name in rates if name.startswith("ours")}
                for place, rate in NEEDED.items()
            },
            "mean_bytes": round(statistics.mean(p.stat().st_size for p in (arguments.folder / "files").iterdir())),
            "files": FILES,
            "rounds": ROUNDS,
            "load_average": os.getloadavg()[0],
        }
        if arguments.simplejpeg:
            command = [arguments.simplejpeg, __file__, "differences", f"--folder={arguments.folder}"]
            environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
            told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            results["simplejpeg_against_pillow"] = json.loads(told)
    results = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | results
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
