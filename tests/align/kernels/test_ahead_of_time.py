"""The Triton kernels compile for GPUs that are not here, into tensor-core instructions, without spilling a register.

In a process of its own, since the interpreter is on in this folder. Another kernel takes part by an `ahead_of_time()`
in its module: rows of name, kernel, types of its arguments, constants, warps, stages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

MODULES = ("_maxsim_triton", "_maxsim_triton_backward", "_transport_triton", "_attend_triton", "_contrastive_triton")
TARGETS = {
    80: (166912, "mma.sync"),
    90: (232448, "wgmma.mma_async"),
}  # shared memory of a block, tensor-core instruction

WORKER = """
import importlib, json, pathlib, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOL = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

def usage(cubin):
    if not TOOL.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\\d+)", text)}

for module in sys.argv[1:]:
    for name, kernel, types, constants, warps, stages in importlib.import_module(module).ahead_of_time():
        signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
        # As a launch marks them: allocations start on multiples of 16 bytes.
        attributes = {
            (place,): [["tt.divisibility", 16]]
            for place, kind in enumerate(signature.values())
            if kind.startswith("*")
        }
        source = ASTSource(kernel, signature, constants, attributes)
        for target in (80, 90):
            options = {"num_warps": warps, "num_stages": stages}
            made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
            ptx = made.asm["ptx"]
            print(json.dumps({
                "name": name, "target": target, "shared": made.metadata.shared, "usage": usage(made.asm["cubin"]),
                "mma.sync": ptx.count("mma.sync"), "wgmma.mma_async": ptx.count("wgmma.mma_async"),
                "atomics": len(re.findall(r"\\b(?:atom|red)\\.", ptx)),
            }))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What came out, one dictionary a kernel and target."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-c", WORKER, *(f"compal.align.kernels.{module}" for module in MODULES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_are_there(compiled):
    assert len(compiled) == 32
    assert {row["target"] for row in compiled} == set(TARGETS)


def test_tensor_cores(compiled):
    # combine only compares; float32 is multiplied without them, as they would round it to 10 bits.
    products = [row for row in compiled if row["name"] != "combine" and not row["name"].endswith("fp32")]
    assert [row for row in products if not row[TARGETS[row["target"]][1]]] == []
    assert [row for row in compiled if row["target"] == 90 and row["mma.sync"]] == []


def test_no_atomics(compiled):
    """So equal inputs give equal bits."""
    assert [row for row in compiled if row["atomics"]] == []


def test_shared_memory(compiled):
    assert [row for row in compiled if row["shared"] > TARGETS[row["target"]][0]] == []


def test_no_spills(compiled):
    if compiled[0]["usage"] is None:
        pytest.skip("this Triton brings no cuobjdump to read a kernel's registers with")
    assert [row for row in compiled if row["usage"]["STACK"] or row["usage"]["LOCAL"]] == []
    assert all(row["usage"]["REG"] > 0 for row in compiled)


def test_importing_asks_no_driver():
    """On a machine without a GPU, and before a process has chosen its own."""
    program = "; ".join(f"import compal.align.kernels.{module}" for module in MODULES)
    program += "; import triton; assert triton.runtime.driver._active is None, 'a driver was made'"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
