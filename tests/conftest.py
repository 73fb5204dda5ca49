"""Fixtures that several tests share: the real small model, a tiny one, servers of object storage.

Three processes of pytest run at once (`make test`), each with whole files of tests. What several could make at the same
moment is made under a lock, or once in each.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import forked
import pytest
import servers
from filelock import FileLock
from hypothesis import HealthCheck, settings
from servers import Storage

if TYPE_CHECKING:
    from whole_store import Case

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported: a second thread gains nothing on a tiny model, and waits where other work has the cores.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# A shell starts its background jobs with SIGINT ignored, which children inherit: here Ctrl-C is to work all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other work on the machine must not fail a test: no deadlines.
settings.register_profile("cliffstore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cliffstore")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


ORDER = ("fault", "integration", "contract", "infra", "unit")
"""Folders of tests: those that wait longest, for clusters and servers, begin first, and none waits alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.relative_to(Path(__file__).parent).parts[0]))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cliffstore.run.executor.available_cpus", lambda: 1)
        yield


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct, unpacked once into the user's cache folder."""
    from cliffstore.model.gguf import converted
    from cliffstore.run.shipped_model import shipped_model

    with FileLock(Path(tempfile.gettempdir()) / f"cliffstore-tests-{os.getuid()}.lock"):
        return str(converted(shipped_model(), print))


@pytest.fixture(scope="session")
def tiny_model(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four Llama blocks of width 32 with random weights, behind the real SmolLM2 tokenizer and template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def whole(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two captures over several units, two probes with scores, cliffs and a selection each. Tests copy it."""
    from whole_store import build_case

    return build_case(tiny_model, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[None]:
    with forked.server():
        yield


@pytest.fixture
def fork(fork_server: None) -> Iterator[forked.Start]:
    """Start commands in processes that have everything imported; they end with the test."""
    with forked.commands() as start:
        yield start


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Benchmark prompts beside the checkout; tests that need them are skipped, and say so, where they are not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"benchmark prompts are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def rclone_s3() -> Iterator[Storage]:
    with servers.rclone() as storage:
        yield storage


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[Storage]:
    with servers.moto() as storage:
        yield storage


@pytest.fixture(scope="session")
def azure() -> Iterator[Storage]:
    with servers.azurite() as storage:
        yield storage
