"""The layers, the borders between processes and the banned constructs, read from the source by parsing it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS: dict[str, int] = {
    # types: values, names and bounds that everything may use
    "sandboxd": 0,
    "sandboxd.bounds": 0,
    "sandboxd.catalogue": 0,
    "sandboxd.config": 0,
    "sandboxd.errors": 0,
    "sandboxd.exit_status": 0,
    "sandboxd.guess": 0,
    "sandboxd.instance": 0,
    "sandboxd.log": 0,
    "sandboxd.output": 0,
    "sandboxd.result": 0,
    "sandboxd.spec": 0,
    "sandboxd.threads": 0,
    "sandboxd.watchdog": 0,
    # pure planning: a job, a policy and the host's facts become a plan; facts become a verdict
    "sandboxd.document": 1,
    "sandboxd.jail.plan": 1,
    "sandboxd.jail.rootfs": 1,
    "sandboxd.jail.abi": 0,
    "sandboxd.jail.steps": 1,
    "sandboxd.jail.wire": 1,
    "sandboxd.languages": 1,
    "sandboxd.policy": 1,
    "sandboxd.verdict": 1,
    # kernel surface
    "sandboxd.jail": 2,
    "sandboxd.jail.syscalls": 2,
    # kernel features, one wall each
    "sandboxd.jail.cgroup_host": 3,
    "sandboxd.jail.cgroup_v1": 3,
    "sandboxd.jail.cgroup_v2": 3,
    "sandboxd.jail.cgroups": 3,
    "sandboxd.jail.collect": 3,
    "sandboxd.jail.facts": 3,
    "sandboxd.jail.images": 3,
    "sandboxd.jail.slots": 3,
    "sandboxd.jail.spawner": 3,
    "sandboxd.jail.warm": 3,
    "sandboxd.jail.workshop": 3,
    # processes: the launcher, its sandboxes, and who talks to it
    "sandboxd.jail.admission": 4,
    "sandboxd.jail.pool": 4,
    "sandboxd.jail.inputs": 4,
    "sandboxd.jail.client": 4,
    "sandboxd.jail.denied": 4,
    "sandboxd.jail.connection": 4,
    "sandboxd.jail.launcher": 4,
    "sandboxd.jail.offer": 4,
    "sandboxd.jail.protocol": 4,
    "sandboxd.jail.reports": 4,
    "sandboxd.jail.sandbox": 4,
    "sandboxd.jail.streams": 4,
    "sandboxd.jail.sweeper": 4,
    # service
    "benchmarks": 5,
    "sandboxd.audit": 5,
    "sandboxd.delegation": 5,
    "sandboxd.execution": 5,
    "sandboxd.local_launcher": 5,
    "sandboxd.queue": 5,
    "sandboxd.redis_server": 5,
    "sandboxd.serve": 5,
    "sandboxd.service_files": 5,
    "sandboxd.store": 5,
    "sandboxd.supervisor": 5,
    "sandboxd.transitions": 5,
    # edges
    "sandboxd.__main__": 6,
    "sandboxd.api": 6,
    "sandboxd.cli": 6,
    "workers": 6,
}
"""Layer of each module; a package's entry holds for the modules in it that have none of their own."""

SERVICE_LIBRARIES = {"flask", "flask_openapi", "werkzeug", "gunicorn", "redis", "rq"}
"""May be imported by layers 5 and 6 alone."""
BANNED_IMPORTS = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle", "atexit", "multiprocessing"}
BANNED_CALLS = {"eval", "exec", "os.system", "os.popen", "os.fork", "os.forkpty", "pty.fork"}
BANNED_ARGUMENTS = {"preexec_fn"}
BANNED_FILE_NAMES = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


class Module:
    """One source file: its dotted name, its syntax tree and what of ours and others' it imports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        relative = path.relative_to(ROOT).with_suffix("")
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        self.name = ".".join(parts)
        self.tree = ast.parse(path.read_text(), str(path))
        self.imports = set(self._imports(ast.walk(self.tree)))
        self.imports_at_start = set(self._imports(self.tree.body))

    def _imports(self, nodes: Iterable[ast.AST]) -> list[str]:
        found = []
        for node in nodes:
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: relative imports hide which layer is meant"
                assert node.module is not None
                found += [f"{node.module}.{alias.name}" for alias in node.names]
        return found

    @property
    def layer(self) -> int:
        return layer_of(self.name)


def layer_of(name: str) -> int:
    """The layer of a module: its own entry, else that of the nearest package that has one, `sandboxd` itself
    excepted.
    """
    probe = name
    while probe not in LAYERS:
        probe = probe.rpartition(".")[0]
        if probe in ("", "sandboxd", "sandboxd.jail"):
            pytest.fail(f"{name} has no layer: give it one in LAYERS")
    return LAYERS[probe]


def load_modules() -> dict[str, Module]:
    folders = ("sandboxd", "workers", "benchmarks")
    paths = [path for folder in folders for path in sorted(ROOT.joinpath(folder).rglob("*.py"))]
    # Hostile programs are data: they are never imported.
    return {module.name: module for path in paths if "programs" not in path.parts for module in [Module(path)]}


MODULES = load_modules()


def inner_imports(module: Module, *, at_start: bool = False) -> set[str]:
    """The modules of ours that a module imports; `from sandboxd.spec import Limits` counts as `sandboxd.spec`.

    `at_start`: without those that a function imports when it is called.
    """
    targets = set()
    for name in module.imports_at_start if at_start else module.imports:
        probe = name
        while probe and probe not in MODULES:
            probe = probe.rpartition(".")[0]
        if probe:
            targets.add(probe)
    return targets - {module.name}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_its_own_layer_or_a_lower_one(name: str) -> None:
    module = MODULES[name]
    upwards = {target: layer_of(target) for target in inner_imports(module) if layer_of(target) > module.layer}
    assert not upwards, f"{name} (layer {module.layer}) imports upwards: {upwards}"


def test_there_is_no_import_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "import cycle: " + " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in sorted(inner_imports(MODULES[name], at_start=True)):
                visit(target, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_below_the_service_no_module_imports_flask_redis_or_rq(name: str) -> None:
    module = MODULES[name]
    tops = {imported.partition(".")[0] for imported in module.imports}
    if module.layer < 5 or name.startswith("sandboxd.jail"):
        assert not tops & SERVICE_LIBRARIES


def test_the_api_never_imports_the_jail() -> None:
    """Not directly and not through another module: a hole in the API must not be next to the code that builds
    sandboxes.
    """
    for name in (name for name in MODULES if name.startswith("sandboxd.api")):
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            for target in inner_imports(MODULES[waiting.pop()]) - reached:
                reached.add(target)
                waiting.append(target)
        assert not [target for target in reached if target.startswith("sandboxd.jail")]


def test_only_the_syscalls_module_imports_ctypes() -> None:
    users = {name for name, module in MODULES.items() if any(i.partition(".")[0] == "ctypes" for i in module.imports)}
    assert users <= {"sandboxd.jail.syscalls"}


def test_the_jail_never_imports_subprocess() -> None:
    """It starts its one kind of child with posix_spawn; a fork in a process with threads can deadlock."""
    users = {name for name, module in MODULES.items() if "subprocess" in module.imports}
    assert not [name for name in users if name.startswith("sandboxd.jail")]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_uses_nothing_that_is_banned(name: str) -> None:
    module = MODULES[name]
    assert not {imported.partition(".")[0] for imported in module.imports} & BANNED_IMPORTS
    assert module.path.name not in BANNED_FILE_NAMES, "a module is named after what it is about"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            where = f"{module.path}:{node.lineno}"
            assert ast.unparse(node.func) not in BANNED_CALLS, where
            for keyword in node.keywords:
                assert keyword.arg not in BANNED_ARGUMENTS, where
                is_shell = keyword.arg == "shell" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                )
                assert not is_shell, where
        assert not (isinstance(node, ast.FunctionDef) and node.name == "__del__"), f"{module.path}:{node.lineno}"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), (
            f"{module.path}:{node.lineno}: bare except"
        )


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_about(name: str) -> None:
    docstring = ast.get_docstring(MODULES[name].tree)
    assert docstring is not None
    assert len(docstring) > 20


def test_every_layer_entry_names_a_module_that_exists() -> None:
    assert set(LAYERS) <= set(MODULES), sorted(set(LAYERS) - set(MODULES))


def test_the_tests_see_the_installed_copy() -> None:
    """A root process must not run code that others may write; and what is tested is what is shipped."""
    import sandboxd

    installed = Path(sandboxd.__file__).resolve()
    if Path(sys.prefix, ".installed-by-sandboxd").exists():
        assert installed.is_relative_to(sys.prefix)
    else:
        assert installed.is_relative_to(ROOT), "a development environment uses the checkout"
