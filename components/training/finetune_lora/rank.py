"""One of several processes of a training: `python -m llm_finetune.components.training.finetune_lora.rank JOB FACTS`."""

import json
import os
import sys
from pathlib import Path

from llm_finetune.components.shared.card import is_disk_full
from llm_finetune.components.shared.engine.processes import call_when_orphaned
from llm_finetune.components.shared.errors import UserError


def main() -> None:
    """Trains as `RANK` of `WORLD_SIZE` processes; the first one writes the facts.

    Raises:
        SystemExit: After a mistake that the starting process tells the user.
    """
    call_when_orphaned(os.getppid(), lambda: os._exit(1))  # nobody would collect the result
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler  # only now: it takes its time

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
    from llm_finetune.components.training.finetune_lora.job import Job
    from llm_finetune.components.training.finetune_lora.training import train

    first = os.environ["RANK"] == "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif "OMP_NUM_THREADS" not in os.environ:  # or each process would take all cores
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["WORLD_SIZE"])))
    if not first:  # the same words from every process would only bury the first one's
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    found = train(Job.model_validate_json(job.read_text(encoding="utf-8")))
    if first:
        write_text(facts, json.dumps(vars(found)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
