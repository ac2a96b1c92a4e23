"""What the distribution holds, built from the tree and built from the sdist of the tree."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

import pytest

import signcore

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
DIST_INFO = f"signcore-{VERSION}.dist-info"
# Each package of the wheel and the folder of the tree that holds it.
PACKAGES = {
    "signcore": ".",
    "signcore_torch": "adapters",
    "signcore_optax": "adapters",
    "signcore_cupy": "adapters",
    "signcore_keras": "adapters",
    "signcore_mpi": "adapters",
    "signcore_conformance": "conformance",
}


def build(outdir: Path, *flags: str) -> Path:
    """Run the build frontend on the tree and return the one wheel it leaves in `outdir`."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(outdir), *flags, str(ROOT)]
    # From a folder of its own: in the tree, a leftover `build` folder would hide the module of that name.
    done = subprocess.run(command, cwd=outdir, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = outdir.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    return build(tmp_path_factory.mktemp("direct"), "--wheel")


@pytest.fixture(scope="module")
def through_sdist(tmp_path_factory):
    return build(tmp_path_factory.mktemp("through_sdist"))


@pytest.fixture(scope="module", params=["direct", "through_sdist"])
def wheel(request):
    return request.getfixturevalue(request.param)


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def tree_files() -> list[str]:
    """Return every file of the package folders, named as the wheel has to name it."""
    # Walked and not asked of git: a pattern in .gitignore that swallows a package file must show up here.
    return sorted(
        path.relative_to(ROOT / folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def test_top_level_names(wheel):
    assert {PurePosixPath(name).parts[0] for name in names(wheel)} == {*PACKAGES, DIST_INFO}


def test_holds_exactly_the_files_of_the_packages(wheel):
    assert [name for name in names(wheel) if not name.startswith(DIST_INFO)] == tree_files()


def test_both_wheels_are_the_same(direct, through_sdist):
    assert names(direct) == names(through_sdist)
    # RECORD has a hash of every other file.
    assert read(direct, f"{DIST_INFO}/RECORD") == read(through_sdist, f"{DIST_INFO}/RECORD")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(wheel, package):
    assert f"{package}/py.typed" in names(wheel)


@pytest.mark.parametrize("package", ["signcore", "signcore_torch", "signcore_optax"])
def test_stubs_of_generated_names(wheel, package):
    assert [name for name in names(wheel) if name.startswith(f"{package}/") and name.endswith(".pyi")]


def test_golden_files(wheel):
    held = [name for name in names(wheel) if name.startswith("signcore_conformance/")]
    assert [name for name in held if name.endswith((".json", ".npz"))]


def test_no_bytecode(wheel):
    assert not [name for name in names(wheel) if "__pycache__" in name or name.endswith(".pyc")]


def test_metadata(wheel):
    metadata = BytesParser().parsebytes(read(wheel, f"{DIST_INFO}/METADATA"))
    required = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == {"numpy>=2.0", "array-api-compat>=1.11"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"{DIST_INFO}/licenses/LICENSE" in names(wheel)


def test_one_version():
    assert signcore.__version__ == VERSION


def test_sdist_holds_what_the_tests_need(through_sdist):
    (sdist,) = through_sdist.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {PurePosixPath(name).relative_to(f"signcore-{VERSION}").as_posix() for name in archive.getnames()}
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert tests | {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md"} <= held
    assert "tools/make_stubs.py" in held
