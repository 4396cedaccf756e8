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
    names = python("import mmfast; print(*mmfast.__all__); assert set(mmfast.__all__) <= set(dir(mmfast))").split()
    for name in names:
        assert python(f"import mmfast; print(mmfast.{name}.__doc__ is not None)") == "True"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        python("import mmfast; mmfast.no_such_name")
    assert "module 'mmfast' has no attribute 'no_such_name'" in failed.value.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist from a copy of the tracked files, and the wheel from the sdist, as ``python -m build`` does."""
    source, out = tmp_path_factory.mktemp("source") / "mmfast", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    _, wheel = distributions
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


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_needs(distributions: tuple[Path, Path]) -> None:
    sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert needed | {"setup.py", "pyproject.toml", "LICENSE", "README.md", "kernels/__init__.py"} <= names
