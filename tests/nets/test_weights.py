from __future__ import annotations

import io
import json
import struct
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from ssl_ray.errors import ConfigError
from ssl_ray.nets import build_net
from ssl_ray.nets.weights import misfits, read_weights
from ssl_ray.settings.nets import NetConfig

TENSOR = torch.ones(2, 3)


def torch_file(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def legacy_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def safetensors_file(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = torch_file({"a": TENSOR})
OLD = torch_file({"a": TENSOR}, _use_new_zipfile_serialization=False)
BAD: dict[str, bytes] = {
    "empty.pth": b"",
    "text.pth": b"<html>404 Not Found</html>",
    "zeros.pt": bytes(1000),
    "cut.pth": GOOD[: len(GOOD) // 2],
    "cut_old.pth": OLD[:-10],
    "tar.pth": legacy_tar(),
    "zip.pth": b"PK\x05\x06" + bytes(18),
    "list.pth": torch_file([TENSOR]),
    "number.pth": torch_file(7),
    "tensor.pth": torch_file(TENSOR),
    "none.pth": torch_file({}),
    "integers.pth": torch_file({0: TENSOR}),
    "tuples.pth": torch_file({("a", 1): TENSOR}),
    "sparse.pth": torch_file({"a": TENSOR.to_sparse()}),
    "meta.pth": torch_file({"a": TENSOR.to("meta")}),
    "complex.pth": torch_file({"a": TENSOR.to(torch.complex64)}),
    "optimizer.pth": torch_file({"a": TENSOR, "optimizer": {"lr": 0.1}}),
    "empty.safetensors": b"",
    "text.safetensors": b"version https://git-lfs.github.com/spec/v1",
    "cut.safetensors": save({"a": TENSOR})[:-4],
    "torch.safetensors": GOOD,
    "dtype.safetensors": safetensors_file({"a": {"dtype": "F4096", "shape": [1], "data_offsets": [0, 1]}}, b"0"),
    "header.safetensors": struct.pack("<Q", 2**62) + b"{}",
    "shape.safetensors": safetensors_file({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"0000"),
    "none.safetensors": save({}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_plain_named_tensors_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(ConfigError) as error:
        read_weights(str(tmp_path / name))
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights file"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize("content", [{"a": TENSOR}, OrderedDict(a=torch.nn.Parameter(TENSOR)), {"model": {"module.a": TENSOR}}])
def test_state_dicts_of_all_kinds_are_read(tmp_path: Path, content: Any) -> None:
    for name, data in (("w.pth", torch_file(content)), ("old.pt", torch_file(content, _use_new_zipfile_serialization=False))):
        (tmp_path / name).write_bytes(data)
        found = read_weights(str(tmp_path / name))
        assert list(found) == ["a"]
        assert torch.equal(found["a"], TENSOR)
        assert not found["a"].requires_grad


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda given: given.pop("a"), "a is missing"),
        (lambda given: given.update(a=torch.ones(3, 2)), "a has another shape"),
        (lambda given: given.update(a=torch.ones(2, 3, dtype=torch.int8)), "a holds int8"),
        (lambda given: given.update(a=torch.ones(2, 3, dtype=torch.bfloat16)), None),
        (lambda given: given.update(a=TENSOR * torch.nan), "a holds NaN, infinity or numbers beyond 32 bits"),
        (lambda given: given.update(a=TENSOR.double() * 1e300), "a holds NaN, infinity or numbers beyond 32 bits"),
        (lambda given: given.update(b=TENSOR * torch.nan), None),
        (lambda given: given.update(b=TENSOR), None),
    ],
)
def test_what_does_not_fit_a_net_is_named(change: Callable[[dict[str, torch.Tensor]], object], problem: str | None) -> None:
    given = {"a": TENSOR}
    change(given)
    assert misfits({"a": TENSOR}, given) == ([] if problem is None else [problem])


def test_weights_of_integers_are_refused(tmp_path: Path) -> None:
    state = {
        key: value.to(torch.int8).contiguous() for key, value in build_net(NetConfig(width=4), 2).backbone.state_dict().items()
    }
    (tmp_path / "w.safetensors").write_bytes(save(state))
    with pytest.raises(ConfigError, match="holds int8"):
        build_net(NetConfig(width=4, weights=str(tmp_path / "w.safetensors")), 2)
