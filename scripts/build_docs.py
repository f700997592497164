"""Build the documentation's site: the repository's Markdown files, and a reference from the docstrings of public names.

python scripts/build_docs.py            # to build/site; any warning fails, and so does a link that leads nowhere
python scripts/build_docs.py --serve    # the same, and shown at http://localhost:8000

The pages are gathered in build/docs, for a site is made of one folder, while GitHub shows the files where they are.
Zensical makes the site: it is what the makers of Material for MkDocs work on, whose own support ends in May 2027, and
MkDocs had its last release in 2024. The configuration is in MkDocs' format, which other generators read, too.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "build" / "docs"

# Pages that are not in docs/, and what they are named on the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "comfyui/README.md": "comfyui.md",
    "wan_vae/weights/README.md": "nano.md",
}
# Modules with public names; what is public in others is exported by `wan_vae` itself.
MODULES = (
    "wan_vae",
    "wan_vae.io",
    "wan_vae.checkpoints",
    "wan_vae.interchange",
    "wan_vae.preview",
    "wan_vae.dataset",
    "wan_vae.training",
    "wan_vae.evaluation.metrics",
    "wan_vae.evaluation.lpips",
    "wan_vae.evaluation.contact_sheet",
    "wan_vae.integrations.diffusers",
    "wan_vae.integrations.comfyui",
    "wan_vae.integrations.export",
)
# Code in fences and in lines is passed over; what is left are links and images.
_LINK = re.compile(r"^ *```.*?^ *```|`[^`\n]+`|(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.MULTILINE | re.DOTALL)


def repository() -> str:
    """Return the repository's address, which pyproject.toml names."""
    found = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def pages() -> dict[str, str]:
    """Return the site's name of every Markdown file that is a page, by its path in the repository."""
    return {path.relative_to(ROOT).as_posix(): path.name for path in sorted((ROOT / "docs").glob("*.md"))} | ELSEWHERE


def link_on_site(source: str, target: str, names: Mapping[str, str]) -> str:
    """Return where a link of a page leads on the site: to a page, to a file beside it, or into the repository."""
    if target.startswith("#") or "://" in target:
        return target
    path, mark, anchor = target.partition("#")
    file = (ROOT / source).parent.joinpath(path).resolve()
    if not (file.exists() and file.is_relative_to(ROOT)):
        raise FileNotFoundError(f"{source} links to {target}, which is not there.")
    place = file.relative_to(ROOT).as_posix()
    if place in names:
        return names[place] + mark + anchor
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    return f"{repository()}/{'tree' if file.is_dir() else 'blob'}/main/{place}{mark}{anchor}"


def page_on_site(source: str, names: Mapping[str, str]) -> str:
    """Return the text of a page, with its links as they lead on the site."""
    text = (ROOT / source).read_text(encoding="utf-8")
    return _LINK.sub(lambda found: link_on_site(source, found[0], names) if found["target"] else found[0], text)


def file_of(module: str) -> Path:
    """Return the file of a module or of a package."""
    place = ROOT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def public_names(module: str) -> list[str]:
    """Return what a module exports: its `__all__`, the names that it imports as themselves, or what it defines."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = [alias.name for node in imports for alias in node.names if alias.asname == alias.name]
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    return sorted(imported) or [name for name in defined if not name.startswith("_")]


def reference_page(module: str) -> str:
    """Return the page of a module, which mkdocstrings fills."""
    members = "".join(f"\n        - {name}" for name in public_names(module))
    return f"# {module}\n\n::: {module}\n    options:\n      members:{members}\n"


def gather() -> None:
    """Lay the pages, and the files that they show, into build/docs."""
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.copytree(ROOT / "docs", DOCS, ignore=shutil.ignore_patterns("*.md"))
    names = pages()
    for source, name in names.items():
        (DOCS / name).write_text(page_on_site(source, names), encoding="utf-8")
    (DOCS / "reference").mkdir()
    for module in MODULES:
        (DOCS / "reference" / f"{module}.md").write_text(reference_page(module), encoding="utf-8")


if __name__ == "__main__":
    gather()
    generate = [sys.executable, "-m", "zensical"]
    built = subprocess.run(
        [*generate, "build", "--clean", "--strict"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(built.stdout)
    # Zensical does not count what is wrong with docstrings.
    failed = built.returncode or int("griffe: " in built.stdout)
    sys.exit(subprocess.call([*generate, "serve"], cwd=ROOT) if not failed and "--serve" in sys.argv[1:] else failed)
