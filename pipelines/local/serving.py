"""A model server on this machine, started and stopped by hand."""

import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llm_finetune.components.serving.vllm_serve import local as server
from llm_finetune.components.serving.vllm_serve import step
from llm_finetune.components.shared.errors import UserError

FACTS = "deployment_info"


def serve_model(
    console: Console, model: Path, name: str, port: int, max_model_len: int, keep: bool, workdir: Path
) -> None:
    """Starts a server for a merged model and asks it a question.

    Args:
        console: Where to print.
        model: Folder of the model.
        name: Model name that clients ask for.
        port: Port; 0 takes a free one.
        max_model_len: Longest context; 0 is the model's own.
        keep: Whether to stay until Ctrl-C and then stop it; else it goes on.
        workdir: Folder for its log and facts.

    Raises:
        UserError: If the model cannot be served.
    """
    if keep:
        os.environ[server.OWNER_VARIABLE] = str(os.getpid())
    folder = workdir.absolute() / "servers" / time.strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir(parents=True)
    chosen = step.Settings.of(
        {"target": "local", "deployment_name": name, "port": port, "max_model_len": max_model_len}
    )
    info = step.vllm_serve(str(model.absolute()), folder / FACTS, folder / "deployment_page.md", chosen)
    try:
        show_deployment(console, info)
        if keep:
            wait_for_ctrl_c(console, folder / FACTS)
    finally:
        if keep:
            server.stop(folder / FACTS)


def stop_servers(workdir: Path) -> int:
    """Stops every server that was started in a folder and still runs; returns how many."""
    return sum(server.stop(facts) for facts in sorted((workdir / "servers").glob(f"*/{FACTS}")))


def show_deployment(console: Console, info: dict[str, Any]) -> None:
    """Prints where a deployment answers, what it has answered, and how to ask it."""
    by = str(info.get("server", info["target"]))
    console.print(Text.assemble("Served by ", (by, "bold"), f" at {info['base_url']}"), soft_wrap=True)
    if info.get("answers"):
        console.print(Text(f"Asked from: {info['asked']}"), soft_wrap=True)
    for answer in info.get("answers", []):
        console.print(Text(f"asked:    {answer['prompt']}"), soft_wrap=True)
        console.print(Text(f"answered: {answer['text']}", "green"), soft_wrap=True)
    console.print("\nTry it:")
    console.print(Text(info["example_curl"]), soft_wrap=True)


def wait_for_ctrl_c(console: Console, deployed: Path) -> None:
    """Waits while a local server runs.

    Args:
        console: Where to print.
        deployed: The deployment's facts, as the card wrote them.

    Raises:
        UserError: If the server ends by itself.
    """
    console.print("\nThe server runs until Ctrl-C.")
    try:
        while server.is_running(deployed):
            time.sleep(1)
        raise UserError(f"the server has ended by itself; its log is {server.read_info(deployed)['log']}")
    except KeyboardInterrupt:
        console.print("stopping the server")
