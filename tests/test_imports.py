"""Who may import whom: the house stays as it was drawn, and every module imports without extras."""

import ast
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ossia

ROOT = Path(ossia.__file__).parent

ALLOWED = {
    "config": set(),
    "errors": set(),
    "options": {"system"},
    "system": set(),
    "ops": {"config", "system"},
    "families": {"config"},
    "model": {"config", "ops"},
    "offload": {"model", "ops", "system"},
    "checkpoint": {"config", "families", "model", "offload", "ops", "options", "system"},
    "text": {"system"},
    "tools": set(),
    "engine": {"config", "model", "ops", "options", "system"},
    "insight": {"config", "families", "model", "ops", "options"},
    "measure": {
        "checkpoint",
        "config",
        "engine",
        "families",
        "insight",
        "model",
        "ops",
        "options",
        "system",
        "train",
    },
    "adapt": {"checkpoint", "config", "families", "model", "ops", "options", "system"},
    "train": {
        "adapt",
        "checkpoint",
        "config",
        "families",
        "insight",
        "model",
        "ops",
        "options",
        "system",
        "text",
    },
    "ladder": {
        "config",
        "engine",
        "insight",
        "measure",
        "model",
        "ops",
        "options",
        "system",
        "train",
    },
    "api": {"checkpoint", "engine", "insight", "model", "offload", "options", "system", "text"},
    "eval": {"api", "checkpoint", "insight", "options", "system", "text", "tools"},
    "serve": {"api", "engine", "options", "system", "text", "tools"},
}
FREE = {"cli", "__init__", "__main__"}  # cli may import anything, and nothing imports it

# Folders that know nothing of tensors, or of text.
WITHOUT = {
    "config": {"torch"},
    "options": {"torch", "typer"},
    "families": {"torch"},
    "text": {"torch"},
    "tools": {"torch"},
    "serve": {"torch"},
    "eval": {"torch"},
    "engine": {"tokenizers"},
}


def folder_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """The absolute names a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(ROOT.rglob("*.py"))


def imported_folders(file: Path) -> set[str]:
    """The folders of ossia whose modules a file imports, its own aside."""
    names = (name.split(".") for name in imports(file))
    return {parts[1] for parts in names if parts[0] == "ossia" and len(parts) > 1} - {
        folder_of(file)
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_file_imports_only_what_its_folder_may(file):
    folder = folder_of(file)
    if folder not in FREE:
        assert imported_folders(file) <= ALLOWED[folder] | {"errors"}
    packages = {name.partition(".")[0] for name in imports(file)}
    assert packages.isdisjoint(WITHOUT.get(folder, set()))


@pytest.mark.parametrize("folder", ALLOWED)
def test_every_allowed_import_is_used(folder):
    used = [imported_folders(file) for file in FILES if folder_of(file) == folder]
    assert used, f"there is no {folder}"
    assert ALLOWED[folder] <= set().union(*used)


def test_every_module_imports():
    skipped = {"ossia.__main__"}  # it runs the command
    if importlib.util.find_spec("ossia.ops._native") is None:  # tests/ops/cpu asks why
        skipped.add("ossia.ops.cpu")
    if importlib.util.find_spec("triton") is None:  # it is for Linux
        skipped.add("ossia.ops.triton")
    # Models of other programs, which are imported by them.
    if importlib.util.find_spec("lm_eval") is None:
        skipped.add("ossia.eval.harness")
    if importlib.util.find_spec("inspect_ai") is None:
        skipped.add("ossia.eval.inspect_provider")
    if importlib.util.find_spec("ray") is None:
        skipped |= {"ossia.serve.replicas.cluster", "ossia.serve.replicas.deployment"}
    for module in pkgutil.walk_packages([str(ROOT)], prefix="ossia."):
        if not module.name.startswith(tuple(skipped)):
            importlib.import_module(module.name)


@pytest.mark.parametrize("module", ["text", "tools", "system.files"])
def test_a_module_leaves_torch_unimported(module):
    """Nor do the modules that it imports in turn import torch."""
    code = f"import ossia.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_documentation_lists_the_same_imports():
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, after = page.partition("| folder | may import |\n|---|---|\n")
    rows = [line.split("|")[1:3] for line in after.partition("\n\n")[0].splitlines()]
    listed = {name.strip(" `"): set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}
    assert listed == ALLOWED
