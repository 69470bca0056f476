"""Write which names of TensorRT's bindings sovit uses, for the oldest TensorRT it takes.

    pip download --no-deps -d DIR tensorrt-cu12-bindings==10.14.1.48.post1 && unzip DIR/*.whl -d DIR
    python -m tests.golden.write_tensorrt_names DIR/tensorrt_bindings/tensorrt.so

Bindings cannot be imported without TensorRT's libraries, but they can be read: the names are strings in the file, and
the docstrings, with their arguments, are what the symbols `tensorrt::<class>Doc::<method>` point to.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "tensorrt_names.json"
SOURCES = tuple(
    f"sovit/runtime/tensorrt/{name}.py"
    for name in ("library", "network", "monitor", "compile", "runtime_cache", "runtime")
)
# What only TensorRT for RTX has, which can be imported and is asked itself.
RTX_ONLY = {
    "ComputeCapability", "num_compute_capabilities", "set_compute_capability", "create_runtime_config",
    "create_runtime_cache", "set_runtime_cache", "deserialize", "set_execution_context_allocation_strategy",
    "dynamic_shapes_kernel_specialization_strategy", "DynamicShapesKernelSpecializationStrategy", "EAGER",
    "cuda_graph_strategy", "CudaGraphStrategy", "DISABLED",
}  # fmt: skip
_SYMBOLS, _RELOCATIONS, _NO_BITS, _RELATIVE = 2, 4, 8, 8
_DOCSTRING = re.compile(r"_ZN8tensorrt\d+(\w+?)DocL\d+(\w+?)E(?:\.|$)")


def used_names() -> set[str]:
    """Every attribute that sovit takes from the module `tensorrt` or from an object that came from it.

    Such an object is what an expression on another one gives, a parameter of type Any, or what `self` keeps of it;
    methods of a class that inherits from one of TensorRT's count as well.
    """
    found: set[str] = set()
    own: set[str] = set()
    for source in SOURCES:
        tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
        foreign: set[str] = {"trt"}
        for node in ast.walk(tree):
            if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name) and node.annotation.id == "Any":
                foreign.add(node.arg)
            if isinstance(node, ast.ClassDef) and any(_root(base) == "trt" for base in node.bases):
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                found |= {name for name in methods if not name.startswith("_")}
                own |= {"forget", "reason", "errors", "interrupted"} & (methods | {"interrupted"})
        for _ in range(3):  # what comes from what came
            foreign |= _assigned(tree, foreign)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _root(node) in foreign:
                found.add(node.attr)
    return {name for name in found - own if not name.startswith("_")}


def _assigned(tree: ast.AST, foreign: set[str]) -> set[str]:
    """What is assigned from a foreign object, alone or in a tuple."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            assert isinstance(node, ast.Assign)
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            else:
                pairs = [(target, node.value)]
            found |= {_path(to) for to, value in pairs if _root(value) in foreign}
    return found


def missing(names: set[str], library: Path) -> set[str]:
    """The names that a library does not hold as a string; linkers let one string be the end of another."""
    content = library.read_bytes()
    return {name for name in names if name.encode() + b"\0" not in content}


def arguments(library: Path) -> dict[str, list[str]]:
    """The arguments that docstrings name, by `Class.method`, where the symbol of the docstring is still there."""
    content = library.read_bytes()
    (table,) = struct.unpack_from("<Q", content, 0x28)
    _, count, _ = struct.unpack_from("<HHH", content, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", content, table + 64 * index) for index in range(count)]

    def at(address: int) -> int | None:
        """Where an address of the loaded library lies in the file."""
        for _, kind, _, begin, offset, size, *_ in sections:
            if kind != _NO_BITS and begin and begin <= address < begin + size:
                return int(address - begin + offset)
        return None

    def text(offset: int) -> str:
        return content[offset : content.index(b"\0", offset)].decode(errors="replace")

    pointers: dict[int, int] = {}
    for _, kind, _, _, offset, size, *_ in sections:
        if kind == _RELOCATIONS:
            for entry in range(offset, offset + size, 24):
                address, information, addend = struct.unpack_from("<QQq", content, entry)
                if information & 0xFFFFFFFF == _RELATIVE:
                    pointers[address] = addend
    found: dict[str, list[str]] = {}
    for _, kind, _, _, offset, size, link, *_ in sections:
        for entry in range(offset, offset + size, 24) if kind == _SYMBOLS else ():
            name, _, _, _, address, _ = struct.unpack_from("<IBBHQQ", content, entry)
            match = _DOCSTRING.match(text(sections[link][4] + name))
            docstring = match and at(pointers.get(address, address))
            if match and docstring:
                found[f"{match[1]}.{match[2]}"] = re.findall(r":arg (\w+):", text(docstring))
    return found


def _root(node: ast.AST) -> str:
    """`trt` of `trt.A(x).b[0]`, and `self._engine` of `self._engine.c`."""
    while True:
        if isinstance(node, ast.Attribute) and node.attr == "__version__":
            return ""
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, ast.Subscript):
            node = node.value
        else:
            return _path(node)


def _path(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


if __name__ == "__main__":
    library = Path(sys.argv[1])
    used = used_names() - RTX_ONLY
    known = {name: names for name, names in arguments(library).items() if name.split(".")[1] in used}
    written = {
        "identifiers": sorted(used - missing(used, library)),
        "arguments": dict(sorted(known.items())),
    }
    GOLDEN.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
