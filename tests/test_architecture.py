"""The direction of imports, and what must not be in the web process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"app": 4, "workbench": 3, "jobs": 2, "storage": 1}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in [ROOT / "app.py", *(p for top in LAYERS for p in (ROOT / top).rglob("*.py"))]:
        if path.exists():
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether at the top of the file) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, id(node) in top
            for name in node.names:
                yield f"{node.module}.{name.name}", id(node) in top


def breaches() -> Iterator[str]:
    for module, path in modules():
        layer = LAYERS[module.split(".")[0]]
        on_device = module.startswith("jobs.gpu")
        for imported, at_top in imports(path):
            first = imported.split(".")[0]
            if LAYERS.get(first, 0) > layer:
                yield f"{module} imports {imported}: upwards"
            if first in HEAVY and not on_device:
                yield f"{module} imports {imported}: only jobs.gpu may"
            if imported.startswith("jobs.gpu") and not on_device and (module != "jobs.worker" or at_top):
                yield f"{module} imports {imported}: only jobs.worker may, inside a function"
            page = module.startswith("workbench.pages.") and imported.startswith("workbench.pages.")
            if page and not imported.startswith(module):
                yield f"{module} imports {imported}: pages never import pages"


def test_imports_go_one_way() -> None:
    assert list(breaches()) == []


def test_all_sql_lives_in_storage() -> None:
    words = ("SELECT ", "INSERT INTO", "UPDATE ", "DELETE FROM", "PRAGMA ")
    found = [
        f"{module}: {node.value[:60]!r}"
        for module, path in modules()
        if not module.startswith("storage")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(words)
    ]
    assert found == []


def test_workers_never_open_the_database() -> None:
    """Nothing that `jobs.worker` reaches may import storage.database at run time, but through records."""
    code = (
        "import sys, jobs.worker, jobs.judges.run, jobs.reporter\n"
        "from pathlib import Path\n"
        "source = ''.join(Path(m.__file__).read_text() for n, m in sys.modules.items()"
        " if n.startswith('jobs.worker') or n.startswith('jobs.judges') or n == 'jobs.reporter')\n"
        "assert 'storage.database' not in source and 'connect(' not in source\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    for module, path in modules():
        if module.startswith(("jobs.gpu", "jobs.judges")) or module in ("jobs.worker", "jobs.reporter"):
            assert not any(name.startswith("storage.database") for name, _ in imports(path)), module


@pytest.mark.parametrize("module", ["app", "jobs.supervisor", "jobs.queue", "storage.__main__"])
def test_torch_is_absent(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("[]"), result.stdout + result.stderr


def test_files_stay_readable() -> None:
    """50 to 300 lines is the aim, 600 the limit."""
    too_long = {
        module: lines
        for module, path in modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert too_long == {}
