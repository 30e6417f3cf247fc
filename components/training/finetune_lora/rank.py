"""One process of a training: `python -m llm_finetune.components.training.finetune_lora.rank JOB FACTS`."""

import json
import os
import sys
from pathlib import Path

from llm_finetune.components.shared.card import is_disk_full
from llm_finetune.components.shared.engine.processes import call_when_orphaned
from llm_finetune.components.shared.errors import UserError


def main() -> None:
    """Trains as rank `RANK` of `WORLD_SIZE` processes; rank 0 writes the facts.

    Raises:
        SystemExit: After a mistake of the user, which the parent process reports.
    """
    call_when_orphaned(os.getppid(), lambda: os._exit(1))  # the parent process would collect the result
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # imported late, because it is slow

    failures = get_error_handler()
    try:
        _train(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        failures.record_exception(error)
        if isinstance(error, UserError) or is_disk_full(error):
            raise SystemExit(1) from None
        raise


def _train(job: Path, facts: Path) -> None:
    import torch
    import transformers

    from llm_finetune.components.shared.files import write_text
    from llm_finetune.components.training.finetune_lora.distributed import is_main_process, world_size
    from llm_finetune.components.training.finetune_lora.job import Job
    from llm_finetune.components.training.finetune_lora.training import train

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif "OMP_NUM_THREADS" not in os.environ:  # otherwise each process would use all cores
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size()))
    if not is_main_process():  # all processes log the same messages
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    result = train(Job.model_validate_json(job.read_text(encoding="utf-8")))
    if is_main_process():
        write_text(facts, json.dumps(vars(result)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
