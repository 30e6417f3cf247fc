"""Processes whose GPUs differ in free memory reckon with the same figure."""

from concurrent.futures import ThreadPoolExecutor

import torch

from llm_finetune.components.training.finetune_lora.distributed import min_over_processes


def test_every_process_reckons_with_the_fullest_gpu():
    store, free = torch.distributed.HashStore(), [70.25, 12.5, 79.0]
    with ThreadPoolExecutor(3) as processes:
        found = list(processes.map(lambda rank: min_over_processes(store, rank, 3, free[rank]), range(3)))
    assert found == [12.5] * 3
