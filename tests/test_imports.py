"""Imports point one way, those for types and inside functions included, and there is no circle."""

import ast
from pathlib import Path

import wan_vae

ROOT = Path(wan_vae.__file__).parent
# A package may import from itself and from what stands on lines above its own.
LAYERS = (
    ("errors",),
    ("arguments",),
    ("config",),
    ("io",),
    ("validation",),
    ("posterior",),
    ("ops",),
    ("model",),
    ("inference", "checkpoints"),
    ("sharding", "interchange"),
    ("vae",),
    ("alpha_pair", "tiny"),
    ("evaluation", "preview"),
    ("report",),
    ("training", "chunks"),
    ("files",),
    ("compare", "dataset", "reconstruction"),
    ("integrations", "serving"),
    ("benchmark",),
    ("cli",),
    ("__init__", "__main__"),
)
# The base needs no reading or writing of clips, and the operations stand for themselves.
FORBIDDEN = {"ops": {"io", "config"}, "model": {"io"}, "inference": {"io"}, "io": {"posterior", "validation"}}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "wan_vae":
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if _is_module(name) else node.module for name in submodules}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "wan_vae"}
    return found


def _is_module(name: str) -> bool:
    place = ROOT.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def test_imports_of_every_module_point_to_lower_layers() -> None:
    level = {name: index for index, names in enumerate(LAYERS) for name in names}
    for path in sorted(ROOT.rglob("*.py")):
        own = package_of(module_of(path))
        for module in imported_modules(path):
            other = package_of(module)
            if other != own and not (module == "wan_vae" and own == "cli"):
                assert level[other] < level[own], f"{path.relative_to(ROOT)} imports {module}"
                assert other not in FORBIDDEN.get(own, set()), f"{path.relative_to(ROOT)} imports {module}"


def test_imports_of_all_modules_have_no_circle() -> None:
    files = {module_of(path): imported_modules(path) for path in ROOT.rglob("*.py")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(files.get(module, set()) - {module}):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(files):
        visit(module, ())
