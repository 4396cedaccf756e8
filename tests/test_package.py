"""The package as it is installed: what importing it costs, what the wheel and the sdist hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ["usearch", "triton", "PIL", "rich", "sklearn", "matplotlib", "jinja2", "pytorch_metric_learning", "pandas"]


def python(program: str, *, folder: Path | None = None, interpreter: str = sys.executable, **variables: str) -> str:
    command = [interpreter, "-c", program]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_importing_loads_nothing_optional() -> None:
    loaded = python("import sys, torch; before = set(sys.modules); import mmfast; print(*set(sys.modules) - before)")
    assert "mmfast" in loaded.split()
    assert not [name for name in loaded.split() if name.partition(".")[0] in OPTIONAL]


def test_importing_is_cheap() -> None:
    """Under 50 ms of processor time beyond torch, the best of three: idle time of a busy machine does not count."""
    program = "import torch, time; t = time.process_time(); import mmfast; print(time.process_time() - t)"
    assert min(float(python(program)) for _ in range(3)) < 0.05


def test_the_public_names() -> None:
    """Each is there, and documented, also as the first that is asked for."""
    names = python("import mmfast; print(*mmfast.__all__); assert set(mmfast.__all__) <= set(dir(mmfast))").split()
    in_order = "import mmfast; print(all(getattr(mmfast, name).__doc__ for name in {}))"
    assert python(in_order.format(names)) == python(in_order.format(names[::-1])) == "True"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        python("import mmfast; mmfast.no_such_name")
    assert "module 'mmfast' has no attribute 'no_such_name'" in failed.value.stderr


def build(source: Path, kind: str, out: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (distribution,) = out.iterdir()
    return distribution


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    """Built from a copy of what is tracked."""
    source = tmp_path / "source/mmfast"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    return build(source, "sdist", tmp_path / "sdist")


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(sdist: Path, tmp_path: Path) -> None:
    """The wheel that is built from the sdist, as ``python -m build`` does."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build(unpacked, "wheel", tmp_path / "wheel")
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    pip = [str(clean / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages,) = clean.glob("lib/python*/site-packages")
    # The dependencies are large and already here. A path in a .pth file is searched last, and the .pth files found
    # there are not read, so that this checkout's editable installation stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    program = """
import mmfast, mmfast.kernels, torch
x = torch.eye(4).requires_grad_()
mmfast.contrastive_loss(x, torch.arange(4), margin=3.0).backward()
index = mmfast.Index(4)
index.add(range(4), torch.eye(4))
assert index.search(torch.eye(4), 1).keys[:, 0].tolist() == [0, 1, 2, 3]
print(mmfast.__file__)
"""
    assert python(program, folder=tmp_path, interpreter=str(clean / "bin/python")).startswith(str(packages))
    info = subprocess.run([str(clean / "bin/mmfast"), "info"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert info.stdout.startswith("mmfast ")
    assert {"py.typed", "_C.pyi", "demo", "search", "kernels"} <= {path.name for path in packages.glob("mmfast/*")}
    assert list(packages.glob("mmfast/demo/*.j2"))
    assert not (packages / "tests").exists()


def test_the_sdist_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert needed | {"setup.py", "pyproject.toml", "LICENSE", "README.md", "kernels/__init__.py"} <= names
