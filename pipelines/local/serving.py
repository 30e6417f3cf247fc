"""A model server on this machine, started and stopped by hand."""

import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from llm_finetune.components.serving.vllm_serve import step
from llm_finetune.components.serving.vllm_serve.local import server
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
        show_request(console, info)
        if keep:
            wait_for_ctrl_c(console, folder / FACTS)
        else:
            console.print("\nThe server goes on. To stop it:")
            console.out(command("stop", "--workdir", str(workdir.absolute())))
    finally:
        if keep:
            server.stop(folder / FACTS)


def stop_servers(workdir: Path) -> int:
    """Stops every server that was started in a folder and still runs; returns how many."""
    return sum(server.stop(facts) for facts in sorted((workdir / "servers").glob(f"*/{FACTS}")))


def show_deployment(console: Console, info: Mapping[str, Any]) -> None:
    """Prints what served a deployment and what it has answered."""
    if info["target"] == "manifest":
        told = "\nNothing is deployed; the page of vLLM Serve holds the manifests for a GitOps repository."
        console.print(told, soft_wrap=True)
        return
    console.print(Text.assemble("\nServed by ", (str(info.get("server", info["target"])), "bold")))
    if info.get("answers"):
        console.print(Text(f"Asked from: {info['asked']}"), soft_wrap=True)
    for answer in info.get("answers", []):
        console.print(Text(f"asked:    {answer['prompt']}"), soft_wrap=True)
        console.print(Text(f"answered: {answer['text']}", "green"), soft_wrap=True)


def show_request(console: Console, info: Mapping[str, Any]) -> None:
    """Prints where a deployment answers, and a request that can be pasted into a shell."""
    console.print("\nIt answers at")
    console.out(info["base_url"])
    console.print("\nTry it:")
    console.out(info["example_curl"])


def command(*arguments: str) -> str:
    """Returns a call of this command that works in a shell wherever it is pasted."""
    return shlex.join([str(Path(sys.executable).with_name("llm-finetune")), *arguments])


def command_to_serve(model: Path, deployed: Path | None) -> str:
    """Returns the command that serves a merged model on this machine.

    Args:
        model: Folder of the model.
        deployed: Facts of an earlier deployment, whose name is kept, or None.
    """
    name = ["--name", server.read_info(deployed)["deployment_name"]] if deployed else []
    return command("serve", str(model), *name, "--keep")


def show_how_to_serve(console: Console, model: Path, deployed: Path) -> None:
    """Prints a run's merged model and how to serve it again, each alone on its line."""
    console.print("\nThe server is stopped. Its model:")
    console.out(model)
    console.print("\nTo serve it again:")
    console.out(command_to_serve(model, deployed))


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
        raise UserError(f"the server has ended by itself; its log:\n{server.read_info(deployed)['log']}")
    except KeyboardInterrupt:
        console.print("stopping the server")
