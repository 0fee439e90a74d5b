"""TorchScript archives, mapped: what torch.jit.load gives, and no memory for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mapped_checkpoints import MIB, resident_of
from torch import Tensor, nn

from ckpt_streamer import jit_load

WIDTH = 512  # weights of 1 MiB


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(4)])
        self.norm = nn.BatchNorm1d(WIDTH)
        self.tied = self.layers[0]
        self.scales = [torch.full((1,), 2.0), torch.full((1,), 0.5)]
        self.register_buffer("small", torch.ones(3, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        x = self.norm(x) * self.scales[0] * self.scales[1]
        constant = torch.full([512], 3.0)
        return x + constant

    @torch.jit.export
    def version(self) -> int:
        return 7


def scripted() -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.script(Model().eval())
    return module


def frozen() -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.freeze(scripted())
    return module


def traced() -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.trace(
        Model().eval(), torch.rand(2, WIDTH)
    )
    return module


def weight_of(module: torch.jit.ScriptModule, layer: int) -> Tensor:
    weight: Tensor = module.state_dict()[f"layers.{layer}.weight"]
    return weight


each_kind = pytest.mark.parametrize("make", [scripted, frozen, traced])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "module.pt"
    scripted().save(path)
    return path


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


@each_kind
def test_the_module_is_that_of_torch(
    make: Callable[[], torch.jit.ScriptModule], tmp_path: Path
) -> None:
    path = tmp_path / "module.pt"
    make().save(path)
    expected, module = torch.jit.load(path), jit_load(path)
    assert type(module) is type(expected)
    assert module.code == expected.code
    assert module.original_name == expected.original_name
    assert getattr(module, "training", None) == getattr(expected, "training", None)
    state, expected_state = module.state_dict(), expected.state_dict()
    assert list(state) == list(expected_state)
    for name, tensor in expected_state.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype
    for (name, value), (other, expected_value) in zip(
        module.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert (name, value.requires_grad) == (other, expected_value.requires_grad)
    x = torch.rand(2, WIDTH)
    with torch.no_grad():
        for _ in range(3):  # the optimised graph as well
            assert torch.equal(module(x), expected(x))


@pytest.mark.parametrize("make", [scripted, frozen])
def test_nothing_is_read_and_all_is_mapped(
    make: Callable[[], torch.jit.ScriptModule], tmp_path: Path
) -> None:
    path = tmp_path / "module.pt"
    make().save(path)
    jit_load(path)  # what the first load of all takes
    before = anonymous_bytes()
    modules = [jit_load(path) for _ in range(8)]
    resident = resident_of(path)
    assert resident.written_bytes == 0
    if make is not frozen:  # torch compares constants of one shape
        assert resident.clean_bytes == 0
    assert anonymous_bytes() - before < 4 * MIB  # of 8 x 4 MiB
    with torch.no_grad():
        modules[0](torch.rand(2, WIDTH))
    assert resident_of(path).clean_bytes >= 4 * MIB


def test_tied_parameters_stay_tied(path: Path) -> None:
    module = jit_load(path)
    assert (
        module.state_dict()["tied.weight"].data_ptr() == weight_of(module, 0).data_ptr()
    )


def test_writes_do_not_reach_the_file(path: Path) -> None:
    content = path.read_bytes()
    module = jit_load(path)
    with torch.no_grad():
        weight_of(module, 1).fill_(5.0)
        assert torch.equal(weight_of(module, 1), torch.full((WIDTH, WIDTH), 5.0))
    assert path.read_bytes() == content
    assert not torch.equal(weight_of(jit_load(path), 1), weight_of(module, 1))


def test_saved_again_it_is_the_same(path: Path, tmp_path: Path) -> None:
    jit_load(path).save(tmp_path / "again.pt")
    expected = torch.jit.load(path).state_dict()
    for name, tensor in torch.jit.load(tmp_path / "again.pt").state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_weights(tmp_path: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(64, 64)), {nn.Linear}, dtype=torch.qint8
    )
    path = tmp_path / "quantized.pt"
    torch.jit.script(model).save(path)
    x = torch.rand(2, 64)
    assert torch.equal(jit_load(path)(x), torch.jit.load(path)(x))


def test_the_meta_device(path: Path) -> None:
    module = jit_load(path, map_location="meta")
    assert weight_of(module, 0).is_meta
    assert weight_of(module, 0).shape == (WIDTH, WIDTH)


def test_verify(path: Path) -> None:
    assert jit_load(path, verify=True).version() == 7
    content = bytearray(path.read_bytes())
    weight = weight_of(torch.jit.load(path), 2).detach().numpy().tobytes()
    at = content.find(weight)
    content[at] ^= 1
    path.write_bytes(content)
    assert jit_load(path).version() == 7
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: record "):
        jit_load(path, verify=True)


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"a": torch.ones(1)}, path)
    text = f"{path}: is not a TorchScript archive, expected what torch.jit.save writes"
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        jit_load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=re.escape(f"{path}: is empty")):
        jit_load(path)
    with pytest.raises(FileNotFoundError):
        jit_load(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        jit_load(tmp_path)
    with pytest.raises(TypeError, match="expected the path of"):
        jit_load(3)  # type: ignore[arg-type]


def test_an_archive_that_is_cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        jit_load(path)
