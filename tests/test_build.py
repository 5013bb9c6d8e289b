"""The build's promises: instruction sets kept apart, a stable-ABI library, clear import errors, a complete wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import monarch_ops
from monarch_ops import _C

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(monarch_ops.__file__).parent
SITE = Path(torch.__file__).parents[1]  # where torch is installed

needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run([str(part) for part in command], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ---- symbols of the kernel units -------------------------------------------------------------------------------------


def leaks(unit: str, listing: str) -> list[str]:
    """External symbols in the `nm --defined-only --extern-only` listing of a kernel unit, but for its row of the table.

    A unit is compiled for one instruction set. An inline function it exports may be the copy that the linker keeps for
    the whole library, and generic code would run, say, AVX-512 instructions. The one data symbol the compiler adds is
    a pointer to the C++ runtime.
    """
    allowed = re.compile(rf"[DdRrBV] (_ZN7monarch\d+{unit}E|DW\.ref\.__gxx_personality_v0)")
    symbols = [" ".join(line.split()[1:]) for line in listing.splitlines() if line.strip()]
    return [symbol for symbol in symbols if not allowed.fullmatch(symbol)]


@needs_nm
def test_kernel_units_export_their_row_alone() -> None:
    objects = sorted(ROOT.glob("build/cpython-*/CMakeFiles/monarch_ops.dir/kernels/*_cpu_*.o"))
    if not objects:
        pytest.skip("no object files under build/: the library was not built in this tree")
    for path in objects:
        listing = run("nm", "--defined-only", "--extern-only", path)
        unit = path.name.partition(".")[0]
        assert f"{unit}E" in listing, f"{path.name} does not define its row"
        assert leaks(unit, listing) == [], path


@pytest.mark.parametrize("kind", ["T", "W", "u", "V", "i"])
def test_a_leak_would_be_noticed(kind: str) -> None:
    row = "0000000000000000 D _ZN7monarch23fft_conv_cpu_avx512_f32E"
    assert leaks("fft_conv_cpu_avx512_f32", f"{row}\n0000000000000000 V DW.ref.__gxx_personality_v0\n") == []
    leak = f"{kind} _ZNSt6vectorIfSaIfEE9push_backEOf"
    assert leaks("fft_conv_cpu_avx512_f32", f"{row}\n0000000000000010 {leak}\n") == [leak]
    assert leaks("mlp_cpu_avx2_f32", row) != []


# ---- symbols of the library ------------------------------------------------------------------------------------------


def unstable(listing: str) -> list[str]:
    """What a `nm -DC --undefined-only` listing needs of torch's C++ interface, or of CUDA without being weak."""
    wrong = []
    for line in listing.splitlines():
        kind, name = line.strip().split(maxsplit=1)
        if re.search(r"\b(c10|at|torch|caffe2)::", name):
            wrong.append(name)
        if "cuda" in name and kind not in "wv" and name != "aoti_torch_device_type_cuda":
            wrong.append(name)
    return wrong


@needs_nm
def test_the_library_needs_the_stable_abi_alone() -> None:
    listing = run("nm", "-DC", "--undefined-only", PACKAGE / "libmonarch_ops.so")
    assert "aoti_torch_library_def" in listing
    assert unstable(listing) == []
    assert ("w aoti_torch_get_current_cuda_stream" in listing) == bool(_C.build_info()["cuda"])
    extension = run("nm", "-DC", "--undefined-only", Path(_C.__file__))
    assert "torch" not in extension  # _C is about Python and the kernel table


@pytest.mark.parametrize(
    "name", ["c10::Error::what() const", "at::Tensor::size(long) const", "vtable for torch::Library"]
)
def test_an_unstable_symbol_would_be_noticed(name: str) -> None:
    good = "   U aoti_torch_get_size\n   U std::runtime_error::what() const\n   w aoti_torch_get_current_cuda_stream\n"
    assert unstable(good + "   U aoti_torch_device_type_cuda\n") == []
    assert unstable(f"{good}   U {name}\n") == [name]
    assert unstable(f"{good}   U cudaMalloc\n") == ["cudaMalloc"]


# ---- the kernel table ------------------------------------------------------------------------------------------------


def test_the_kernel_table_is_complete() -> None:
    rows = monarch_ops.variants()
    names = [(row["family"], row["name"], row["compute"]) for row in rows]
    assert len(set(names)) == len(names)
    families = {row["family"] for row in rows}
    assert families == {"fft_conv", "depthwise_conv1d", "mlp"}
    for family in families:
        own = [row for row in rows if row["family"] == family]
        assert [row["index"] for row in own] == list(range(len(own)))
        # the row that every machine can run
        for compute in ("float32", "float64"):
            [generic] = [row for row in own if (row["name"], row["compute"]) == ("generic", compute)]
            assert generic["available"]
            assert generic["device"] == "cpu"
    assert any(row["device"] == "cuda" for row in rows) == bool(_C.build_info()["cuda"])


def test_the_table_is_the_same_without_asking_for_devices() -> None:
    asked, not_asked = monarch_ops.variants(), monarch_ops.variants(ask_cuda=False)
    assert not any(row["available"] for row in not_asked if row["device"] == "cuda")
    for row, other in zip(asked, not_asked, strict=True):
        assert row | {"available": other["available"]} == other
        assert row["device"] == "cuda" or row == other


def test_an_import_asks_for_no_devices() -> None:
    """... after which CUDA would not work in child processes, nor CUDA_VISIBLE_DEVICES in this one."""
    program = (
        "import sys, types; sys.modules['monarch_ops._C'] = types.ModuleType('monarch_ops._C'); import monarch_ops\n"
        "try: monarch_ops.variants()\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "has no attribute 'variants'" in done.stdout  # all questions go there


# ---- a library that cannot be loaded ---------------------------------------------------------------------------------


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """The package without its library."""
    shutil.copytree(
        PACKAGE, tmp_path / "monarch_ops", ignore=shutil.ignore_patterns("libmonarch_ops.so", "__pycache__")
    )
    return tmp_path


def import_from(folder: Path) -> tuple[int, str]:
    """Exit status and last line of an import of the package in `folder`.

    Without site (-S), as an editable installation hooks the import system and would fill in what the copy lacks.
    """
    paths = [str(folder), str(SITE)]
    program = f"import sys; sys.path += {paths}; import monarch_ops; print(monarch_ops.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines(), ""][-2]


def test_a_missing_library_says_what_to_run(package_copy: Path) -> None:
    status, message = import_from(package_copy)
    assert status == 1
    assert message.startswith(f"ImportError: monarch_ops: the compiled library {package_copy}")
    assert "does not exist. Build it with `pip install --no-build-isolation .`" in message


@pytest.mark.parametrize("damage", ["not-a-library", "another-machine"])
def test_a_corrupt_library_says_what_to_run(package_copy: Path, damage: str) -> None:
    content = bytearray((PACKAGE / "libmonarch_ops.so").read_bytes())
    if damage == "not-a-library":
        content = bytearray(b"version https://git-lfs.github.com/spec/v1\n")
    else:
        content[18:20] = b"\xff\xfe"  # e_machine of the ELF header
    (package_copy / "monarch_ops" / "libmonarch_ops.so").write_bytes(content)
    status, message = import_from(package_copy)
    assert status == 1
    assert re.match(r"ImportError: monarch_ops: .*does not load with torch \d.*Rebuild it with `pip install", message)


def test_a_missing_extension_says_what_to_run(package_copy: Path) -> None:
    """Also the check that a complete copy is imported from where it is, and not from the installed package."""
    library = package_copy / "monarch_ops" / "libmonarch_ops.so"
    shutil.copy(PACKAGE / "libmonarch_ops.so", library)
    assert import_from(package_copy) == (0, str(package_copy / "monarch_ops" / "__init__.py"))
    [extension] = (package_copy / "monarch_ops").glob("_C.*.so")
    extension.unlink()
    status, message = import_from(package_copy)
    assert status == 1
    assert re.match(r"ImportError: monarch_ops: the extension module _C does not load: .*Build it with `pip", message)


# ---- the source distribution -----------------------------------------------------------------------------------------


def test_the_source_distribution_holds_what_the_build_needs(tmp_path: Path) -> None:
    settings = tmp_path / "setuptools.cfg"
    settings.write_text(f"[egg_info]\negg_base = {tmp_path}\n")
    program = f"import os, setuptools.build_meta as b; os.chdir({str(ROOT)!r}); b.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", program, DIST_EXTRA_CONFIG=str(settings))
    with tarfile.open(tmp_path / f"monarch_ops-{monarch_ops.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    compiled = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    package = [path for path in (ROOT / "monarch_ops").rglob("*") if path.suffix in (".py", ".pyi", ".typed")]
    needed = {path.relative_to(ROOT).as_posix() for path in (*compiled, *package)}
    assert {"csrc/schema.cpp", "csrc/kernels/variants.def", "csrc/kernels/instantiate.in"} <= needed
    needed |= {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert needed - names == set()
    assert not [name for name in names if re.match(r"(tests|bench|build|docs)/|.*\.so$", name)]


# ---- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree without CUDA, compiled in minutes, or seconds with ccache; CMake's folder is used again."""
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools would collect in build/lib, where modules deleted long ago may still lie
    settings = folder / "setuptools.cfg"
    settings.write_text(f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet", ROOT,
        "-w", folder, MONARCH_CUDA="off", DIST_EXTRA_CONFIG=str(settings))  # fmt: skip
    [path] = folder.glob("*.whl")
    return path


def test_the_wheel_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode()
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert re.fullmatch(rf"monarch_ops-{re.escape(monarch_ops.__version__)}-{tag}-{tag}-\w+\.whl", wheel.name)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "monarch_ops").rglob("*.py")}
    assert modules - names == set()
    assert {"monarch_ops/libmonarch_ops.so", "monarch_ops/py.typed"} <= names
    assert len([name for name in names if re.fullmatch(r"monarch_ops/_C\.cpython-.*\.so", name)]) == 1
    assert any(re.fullmatch(r"monarch_ops-.*\.dist-info/licenses/LICENSE", name) for name in names)
    surplus = {n for n in names if not re.match(r"monarch_ops/|monarch_ops-[^/]*\.dist-info/", n)}
    assert surplus == set()
    assert not [name for name in names if re.search(r"(^|/)(csrc|tests?|bench)/|test_|\.(cpp|h|cuh?|def|o)$", name)]
    assert "Requires-Dist: torch>=2.11" in metadata


TRIAL = """
import sys
sys.path.append({site!r})  # torch; behind the environment's own packages, and without the .pth files there
import torch, monarch_ops
assert monarch_ops.__file__.startswith({venv!r}), monarch_ops.__file__
u, k = torch.randn(2, 3, 100), torch.randn(3, 100)
y = monarch_ops.fft_conv(u, k)
exact = sum(k[:, j, None] * torch.nn.functional.pad(u, (j, 0))[..., :100] for j in range(100))
torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-4)
assert not any(row["device"] == "cuda" for row in monarch_ops.variants())
print("it works")
"""


def test_the_wheel_installs_runs_and_goes(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    before = {path.relative_to(venv) for path in venv.rglob("*")}
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    assert {path.relative_to(venv) for path in venv.rglob("*")} > before
    assert "it works" in run(python, "-I", "-c", TRIAL.format(site=str(SITE), venv=str(venv)))
    run(*pip, "uninstall", "-y", "monarch-ops")
    assert {path.relative_to(venv) for path in venv.rglob("*")} == before
