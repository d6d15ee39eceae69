"""Facts of the project as a package: what is installed, what ships, what the pages say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points, packages_distributions, requires, version
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "cmseg_core", "deployments")
COMPANIONS = {"distributed": "prefect-dask", "botocore": "boto3", "pydantic_core": "pydantic", "markupsafe": "jinja2"}
"""Packages that are part of another requirement's interface, which brings them in a version that suits it."""

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
MODEL_SUFFIXES = {".keras", ".pt", ".safetensors", ".onnx"}


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    """Name of a requirement in the spelling of the index."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return _canonical(found.group())


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Top-level names that a module imports, wherever in the module it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def _make_settings() -> ModuleType:
    loader = SourceFileLoader("make_settings", str(ROOT / "docs" / "make_settings.py"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_installed_version_is_that_of_the_project():
    assert version("cmseg") == _project()["project"]["version"]


def test_installed_requirements_are_those_of_the_project():
    # An environment made before a change of pyproject.toml would hide a missing or superfluous requirement.
    stated = {_name(r) for r in _project()["project"]["dependencies"]}
    assert {_name(r) for r in requires("cmseg") or () if "extra ==" not in r} == stated


def test_every_imported_package_is_a_requirement():
    project = _project()["project"]
    stated = {_name(r) for r in project["dependencies"]}
    # What an extra brings is imported where it says so when it is absent.
    extra = {ROOT / "flows" / "cluster.py": {_name(r) for r in project["optional-dependencies"]["dask"]}}
    providers = packages_distributions()
    undeclared = {}
    for path in _sources():
        for name in _imported(path) - set(PACKAGES) - sys.stdlib_module_names:
            owners = {COMPANIONS.get(name), *(_canonical(d) for d in providers.get(name, []))}
            if not owners & (stated | extra.get(path, set())):
                undeclared.setdefault(name, str(path.relative_to(ROOT)))
    assert undeclared == {}


def test_command_resolves_to_a_callable():
    (command,) = entry_points(group="console_scripts", name="cmseg")
    assert command.value == "flows.cli:main"
    assert callable(command.load())


def test_every_package_with_modules_has_an_init():
    # A folder without one is skipped by the import contracts, and by tools that walk packages.
    folders = {path.parent for path in _sources()}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_wheel_holds_every_tracked_file_of_the_packages():
    """Models, templates and the viewer are data files: an ignore rule must not keep them out of the wheel."""
    builder = pytest.importorskip("hatchling.builders.wheel")
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--", *PACKAGES], capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    shipped = {file.distribution_path for file in builder.WheelBuilder(str(ROOT)).recurse_included_files()}
    # A file that is deleted but not yet committed is still tracked.
    assert {name for name in tracked.stdout.split("\0") if name and (ROOT / name).is_file()} - shipped == set()


def test_no_packaged_model_is_a_pickle_or_empty():
    models = [p for package in PACKAGES for p in (ROOT / package).rglob("*") if p.suffix in MODEL_SUFFIXES]
    if not models:
        pytest.skip("no model is packaged")
    for path in models:
        assert path.stat().st_size > 1024, path
        # A .keras file and a .pt file of weights are both zip archives; a bare pickle starts with 0x80.
        assert path.read_bytes()[:1] != b"\x80", path


def test_settings_page_is_up_to_date():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == _make_settings().render(), "run `make settings` and commit docs/settings.md"


def test_settings_page_names_every_setting():
    from cmseg_core.schema import PipelineConfig, Workspace

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    variables = {f"CMSEG_{name.upper()}" for name in Workspace.model_fields}
    for section, field in PipelineConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {}) if section != "taxonomy" else {}
        variables |= {f"CMSEG_{section.upper()}__{name.upper()}" for name in inner}
    assert {name for name in variables if f"`{name}`" not in page} == set()


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str):
    path = ROOT / page
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [t for t in targets if not (path.parent / t).exists()] == []


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert _project()["project"]["license"] == "Apache-2.0"


def test_ci_runs_what_the_makefile_offers():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = set(re.findall(r"^make ([a-z-]+)$", script, re.MULTILINE))
    assert called == {"lint", "test"}
    assert called <= targets
