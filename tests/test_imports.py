"""Who may import whom: the house stays as it was drawn, and every module imports without extras."""

import ast
import importlib
import importlib.util
import pkgutil
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
    "model": {"config", "offload", "ops"},
    "offload": {"checkpoint", "config", "families", "model", "ops", "system"},
    "checkpoint": {"config", "families", "model", "offload", "ops", "system"},
    "text": {"system"},
    "tools": set(),
    "engine": {"config", "model", "ops", "options", "system"},
    "insight": {"config", "families", "model", "ops"},
    "measure": {
        "checkpoint",
        "config",
        "engine",
        "insight",
        "model",
        "ops",
        "options",
        "system",
    },
    "adapt": {"checkpoint", "config", "families", "model", "ops", "system", "text", "train"},
    "train": {
        "options",
        "adapt",
        "checkpoint",
        "config",
        "families",
        "insight",
        "model",
        "ops",
        "system",
        "text",
    },
    "ladder": {
        "options",
        "adapt",
        "api",
        "checkpoint",
        "config",
        "engine",
        "families",
        "insight",
        "measure",
        "model",
        "ops",
        "options",
        "system",
        "text",
        "train",
    },
    "api": {"checkpoint", "engine", "options", "text"},
    "serve": {"api", "engine", "text"},
}
FREE = {"cli", "__init__", "__main__"}  # cli may import anything, and nothing imports it

# Folders that know nothing of tensors, or of text.
WITHOUT = {
    "config": {"torch"},
    "options": {"torch", "typer"},
    "families": {"torch"},
    "text": {"torch"},
    "tools": {"torch"},
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


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_file_imports_only_what_its_folder_may(file):
    folder = folder_of(file)
    for name in imports(file):
        top, _, rest = name.partition(".")
        if top == "ossia" and folder not in FREE:
            target = rest.partition(".")[0]
            assert target in ALLOWED[folder] | {folder, "errors"}, f"{file} imports {name}"
        assert top not in WITHOUT.get(folder, set()), f"{file} imports {name}"


def test_every_module_imports():
    skipped = {"ossia.__main__"}  # it runs the command
    if importlib.util.find_spec("ossia.ops._native") is None:  # tests/ops/cpu asks why
        skipped.add("ossia.ops.cpu")
    for module in pkgutil.walk_packages([str(ROOT)], prefix="ossia."):
        if not module.name.startswith(tuple(skipped)):
            importlib.import_module(module.name)


@pytest.mark.parametrize("module", ["text", "tools", "system.files"])
def test_a_module_leaves_torch_unimported(module):
    """Nor do the modules that it imports in turn import torch."""
    code = f"import ossia.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
