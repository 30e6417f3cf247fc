"""What every test finds around it: the same on a laptop, in CI, in a pod, behind a proxy and on any processor.

Of the environment in which pytest was started a test gets what is named here and nothing else. A credential, a proxy,
the address of a cluster or of a hub, a cache or somebody's own setting would change what it sees. Child processes
inherit it, so it holds for them too.
"""

import atexit
import os
import re
import shutil
import tempfile
import time
from collections.abc import MutableMapping

KEPT = re.compile(
    "PATH|TMPDIR|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|VIRTUAL_ENV"  # to find and to start programs
    "|(PYTEST|COV|COVERAGE)_.*"
    "|LLM_FINETUNE_CRD_SCHEMAS|DEBIAN_MIRROR"  # read by tests
)
FIXED = {
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    # One thread a process, since more processes run than there are cores.
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    # Neither a GPU nor a processor with bfloat16 products changes the precision, and with it figures and answers.
    "CUDA_VISIBLE_DEVICES": "",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Digests of images that somebody has pushed would change the compiled YAML.
    "LLM_FINETUNE_IMAGES": os.devnull,
}
UMASK = 0o022
OUTGOING = re.compile(
    "(HTTPS?|ALL|FTP|NO)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|PIP_.*"
    "|DOCKER_HOST|XDG_RUNTIME_DIR|(CONTAINERS|BUILDAH)_.*",
    re.IGNORECASE,
)
# What tests that a mark sets apart take from the machine all the same: they download, start containers, or need a GPU.
OF_THE_MACHINE = {"demo": OUTGOING, "images": OUTGOING, "gpu": re.compile("CUDA_VISIBLE_DEVICES")}


def settle(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Makes the environment the known one, before anything is imported that reads it.

    Args:
        environment: The process's own, changed in place.

    Returns:
        What it was before.
    """
    before = dict(environment)
    for name in before:
        if not KEPT.fullmatch(name):
            del environment[name]
    environment.update(FIXED)
    # A worker of pytest-xdist inherits the home of the process that has started it, which removes it.
    environment["HOME"] = before["HOME"] if "PYTEST_XDIST_WORKER" in before else _new_home()
    os.umask(UMASK)
    time.tzset()
    return before


def give_back(environment: MutableMapping[str, str], before: dict[str, str], marks: str) -> None:
    """Gives tests of a mark what they take from the machine.

    Args:
        environment: The process's own, changed in place.
        before: From `settle`.
        marks: pytest's -m.
    """
    for mark, names in OF_THE_MACHINE.items():
        if re.search(rf"(?<!not )\b{mark}\b", marks):
            for name in filter(names.fullmatch, {**environment, **before}):
                environment.pop(name, None)
                environment.update({name: before[name]} if name in before else {})


def _new_home() -> str:
    home = tempfile.mkdtemp(prefix="llm-finetune-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home
