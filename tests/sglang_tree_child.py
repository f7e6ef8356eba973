"""`prebled.worker.sglang_child`, which also writes down SGLang's own tree, as it is whenever the scheduler goes idle.

The tree is written as JSON to a file named after the process, in the folder that `PREBLED_TEST_TREES` names. Of the
tree in Python, all of it: per node the salt, the tokens from the root to its end, and how many of these are before it.
Of the one in Rust, which is opaque, the position of each token that it holds.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from prebled.core.blocks import block_hashes, namespace_seed
from prebled.worker import sglang_child

CHILD = (sys.executable, __file__)
"""What `SchedulerProcesses` is to start."""

prepare_device = sglang_child._prepare_device


def prepare_and_hook(wanted: str) -> str:
    device = prepare_device(wanted)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler.on_idle", tell, HookType.BEFORE)
    return device


def tell(scheduler: Any) -> None:
    core = scheduler.tree_cache.tree_core
    if os.environ.get("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND") == "python":
        text = json.dumps(list(nodes(core.root_node, [])))
    else:
        text = json.dumps(core.walk_for_kv_canary(False, False).positions.tolist())
    path = tree_path(Path(os.environ["PREBLED_TEST_TREES"]), os.getpid())
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def tree_path(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.json"


def read_blocks(tree: Path, model: str, block_tokens: int) -> dict[int, int]:
    """Each block of a tree in Python, and the one before it (0: none), by our hashes."""
    parents: dict[int, int] = {}
    for salt, tokens, first in json.loads(tree.read_text()):
        seed = namespace_seed(model, "", salt)
        hashes = [0, *block_hashes(array("I", tokens).tobytes(), block_tokens, seed)]
        own = range(first // block_tokens, len(tokens) // block_tokens)
        parents.update({hashes[index + 1]: hashes[index] for index in own})
    return parents


def read_depths(tree: Path, block_tokens: int) -> Counter[int]:
    """How many blocks a tree in Rust holds at each depth."""
    tokens = Counter(position // block_tokens for position in json.loads(tree.read_text()))
    assert all(count % block_tokens == 0 for count in tokens.values())
    return Counter({depth: count // block_tokens for depth, count in tokens.items()})


def nodes(parent: Any, before: list[int]) -> Any:
    for node in parent.children.values():
        tokens = before + list(node.key.raw_token_ids())
        if node.component_data[0].value is not None:
            yield node.key.cache_salt or "", tokens, len(before)
        yield from nodes(node, tokens)


if __name__ == "__main__":
    sglang_child._prepare_device = prepare_and_hook
    sys.exit(sglang_child.main(sys.argv[1]))
