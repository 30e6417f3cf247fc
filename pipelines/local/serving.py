"""Model servers on this machine: `llm-finetune serve` and `llm-finetune stop`."""

import os
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from llm_finetune.components.serving.vllm_serve import step
from llm_finetune.components.serving.vllm_serve.local import server
from llm_finetune.components.serving.vllm_serve.report import DeploymentInfo
from llm_finetune.components.shared.errors import UserError

INFO_FILE = "deployment_info"


def serve_model(
    console: Console, model: Path, name: str, port: int, max_model_len: int, keep: bool, workdir: Path
) -> None:
    """Starts a server for a merged model and sends it a test request.

    Args:
        console: Console to print to.
        model: Folder of the model.
        name: Model name in requests.
        port: Port; 0 selects a free one.
        max_model_len: Maximum context length in tokens; 0 uses the model's.
        keep: Whether to wait for Ctrl-C and then stop the server; else it keeps running.
        workdir: Folder for log and deployment info.

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
    info = step.vllm_serve(str(model.absolute()), folder / INFO_FILE, folder / "deployment_page.md", chosen)
    try:
        show_deployment(console, info)
        show_request(console, info)
        if keep:
            wait_for_ctrl_c(console, folder / INFO_FILE)
        else:
            console.print("\nThe server keeps running. To stop it:")
            console.out(command_line("stop", "--workdir", str(workdir.absolute())))
    finally:
        if keep:
            server.stop(folder / INFO_FILE)


def stop_servers(workdir: Path) -> int:
    """Stops all running servers that were started with a work folder, and returns their number."""
    return sum(server.stop(info) for info in sorted((workdir / "servers").glob(f"*/{INFO_FILE}")))


def show_deployment(console: Console, info: DeploymentInfo) -> None:
    """Prints the server of a deployment, and its answers to the test prompts."""
    if info["target"] == "manifest":
        message = "\nNothing is deployed; the page of vLLM Serve contains the manifests for a GitOps repository."
        console.print(message, soft_wrap=True)
        return
    console.print(Text.assemble("\nServed by ", (str(info.get("server", info["target"])), "bold")))
    if info.get("answers"):
        console.print(Text(f"Test prompts: {info['asked']}"), soft_wrap=True)
    for answer in info.get("answers", []):
        console.print(Text(f"prompt: {answer['prompt']}"), soft_wrap=True)
        console.print(Text(f"answer: {answer['text']}", "green"), soft_wrap=True)


def show_request(console: Console, info: DeploymentInfo) -> None:
    """Prints URL of a deployment and a curl command."""
    console.print("\nURL:")
    console.out(info["base_url"])
    console.print("\nTry it:")
    console.out(info["example_curl"])


def command_line(*arguments: str) -> str:
    """Returns an `llm-finetune` command line that works in any folder."""
    return shlex.join([str(Path(sys.executable).with_name("llm-finetune")), *arguments])


def serve_command(model: Path, info: Path | None) -> str:
    """Returns the command that serves a merged model on this machine.

    Args:
        model: Folder of the model.
        info: Info file of an earlier deployment, whose name is kept, or None.
    """
    name = ["--name", server.read_info(info)["deployment_name"]] if info else []
    return command_line("serve", str(model), *name, "--keep")


def show_serve_command(console: Console, model: Path, info: Path) -> None:
    """Prints the merged model of a run and the command to serve it, each on a line of its own."""
    console.print("\nThe server was stopped. Merged model:")
    console.out(model)
    console.print("\nTo serve it again:")
    console.out(serve_command(model, info))


def wait_for_ctrl_c(console: Console, info: Path) -> None:
    """Waits for Ctrl-C while a local server runs.

    Args:
        console: Console to print to.
        info: Info file of the deployment.

    Raises:
        UserError: If the server exits.
    """
    console.print("\nThe server runs until Ctrl-C.")
    try:
        while server.is_running(info):
            time.sleep(1)
        raise UserError(f"the server exited; log:\n{server.read_info(info)['log']}")
    except KeyboardInterrupt:
        console.print("stopping the server")
