"""Runs `tune-sparsity --target S`, which begins a study."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from typing import Any, NoReturn, TextIO

from tune_sparsity.tuner.commands.arguments import (
    ADDRESS_HELP,
    CPUS_HELP,
    GPUS_HELP,
    GROUP_HELP,
    PATIENCE_HELP,
    STORAGE_HELP,
    TRACKING_HELP,
    WORKERS_HELP,
    Parser,
)
from tune_sparsity.tuner.commands.console import say, say_missing
from tune_sparsity.tuner.errors import EXIT_DONE, EXIT_FAILED, EXIT_INFEASIBLE, EXIT_INTERRUPTED
from tune_sparsity.tuner.system.leaving import leave

LAUNCHED = time.monotonic()  # a study's seconds count from here, so that they include the imports
_EPILOG = """\
also:
  tune-sparsity resume STUDY    continue a study that was interrupted
  tune-sparsity export STUDY --format FORMAT    write the best network as a checked file
  tune-sparsity report STUDY    write one HTML page to send to a colleague
  tune-sparsity compare STUDY STUDY    compare two or more studies of one experiment
  tune-sparsity ui STUDY        open the study in MLflow's UI
  tune-sparsity send STUDY      send to MLflow the data that could not be sent before
  tune-sparsity check mine.py:mine    check an experiment of your own
  tune-sparsity doctor          check the machine, Ray, MLflow and the storage
  tune-sparsity list experiments|methods|spaces|samplers    print the names that options accept

exit codes: 0 done, 1 the study failed, 2 wrong use, 3 no network meets the goal, 130 interrupted"""


def search_parser() -> Parser:
    """Return the parser for the options of a study. The parser returns values as text, because StudyConfig converts and
    checks them."""
    parser = Parser(
        description="Finds the most accurate network with a sparsity of at least S, and the front of all networks.",
        epilog=_EPILOG,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=_version())
    _add_goals(parser)
    _add_search(parser)
    _add_resources(parser)
    _add_records(parser)
    return parser


def _add_goals(parser: Parser) -> None:
    what = parser.add_argument_group("what to find")
    what.add_argument("--target", metavar="S", help="fraction of zero weights to reach, e.g. 0.9, or several: 0.8,0.9")
    what.add_argument("--front", metavar="S:S", help="the whole front between two sparsities, e.g. 0.5:0.99")
    what.add_argument("--max-nonzero", metavar="N", help="limit of the number of nonzero weights, instead of a target")
    what.add_argument(
        "--max-macs", metavar="N", help="limit of the multiply-adds for an example; needs --pattern neurons"
    )
    what.add_argument(
        "--max-latency", metavar="T", help="limit of the time of a forward pass, e.g. 2ms; needs --pattern neurons"
    )
    what.add_argument(
        "--latency-batch", metavar="N", help="examples in the batch that is timed for --max-latency (default: 1)"
    )
    what.add_argument(
        "--max-bytes",
        metavar="N",
        help="limit of the size of a file in the export format packed, e.g. 10000 or 10kB",
    )
    what.add_argument(
        "--experiment", metavar="NAME", help="built-in name, file.py:name or module:name (default: digits)"
    )
    what.add_argument(
        "--method", metavar="NAME", help="one method, or several with commas, e.g. lpss,gmp (default: lpss)"
    )
    what.add_argument(
        "--space",
        metavar="NAME|FILE",
        help="search space: a name from `tune-sparsity list spaces`, or a .yaml file (default: the method's own space)",
    )
    what.add_argument("--data-dir", metavar="DIR", help="where data sets are, or are downloaded to")


def _add_search(parser: Parser) -> None:
    how = parser.add_argument_group("how to search")
    how.add_argument("--trials", metavar="N", help="number of trials (default: 32)")
    how.add_argument("--time-budget", metavar="T", help="end after 90s, 30m, 1h30m, ...")
    how.add_argument("--patience", metavar="N", help=PATIENCE_HELP)
    how.add_argument("--epochs", metavar="N", help="epochs of a trial (default: the experiment's own number)")
    how.add_argument(
        "--seed", metavar="N", help="seed of the sampler, the weights and the order of examples (default: 0)"
    )
    how.add_argument(
        "--pattern",
        metavar="PATTERN",
        help="pattern of the zeros: neurons, 2:4, block:4x1, ... (default: the experiment's own pattern)",
    )
    how.add_argument("--group", metavar="NAME", help=GROUP_HELP)
    how.add_argument(
        "--ensemble",
        metavar="NAME",
        help="resample: build an ensemble of networks whose weights differ a little from those of the best network",
    )
    how.add_argument("--members", metavar="N", help="number of networks in the ensemble (default: 10)")
    how.add_argument(
        "--final-seeds", metavar="N", help="train each method's best trial again with N other seeds (default: 0)"
    )
    how.add_argument("--sampler", metavar="NAME", help="a name from `tune-sparsity list samplers` (default: tpe)")
    how.add_argument(
        "--warm-start",
        metavar="STUDY",
        nargs="+",
        help="names or folders of earlier studies, to learn from their trials",
    )
    how.add_argument(
        "--scheduler", metavar="NAME", help="asha stops bad trials early; none never stops a trial (default: asha)"
    )


def _add_resources(parser: Parser) -> None:
    where = parser.add_argument_group("where to run")
    where.add_argument(
        "--concurrency",
        metavar="N",
        help="number of trials at the same time (default: as many as the CPUs and GPUs allow)",
    )
    where.add_argument("--workers-per-trial", metavar="N", help=WORKERS_HELP)
    where.add_argument("--cpus-per-trial", metavar="N", help=CPUS_HELP)
    where.add_argument("--gpus-per-trial", metavar="N", help=GPUS_HELP)
    where.add_argument("--address", metavar="ADDRESS", help=ADDRESS_HELP)


def _add_records(parser: Parser) -> None:
    record = parser.add_argument_group("where to keep it")
    record.add_argument("--storage", metavar="DIR", help=STORAGE_HELP)
    record.add_argument(
        "--study", metavar="NAME", help="the study's name (default: made from the experiment, the target and the time)"
    )
    record.add_argument("--tracking-uri", metavar="URI", help=TRACKING_HELP)
    record.add_argument("--register", metavar="NAME", help="put the best network into MLflow's registry")
    record.add_argument("--system-metrics", action="store_true", help="also log this machine's load to MLflow")
    record.add_argument("--config", metavar="FILE", help="YAML with these options; the command line overrides it")
    record.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"tune-sparsity {version('tune-sparsity')}"
    except PackageNotFoundError:
        return "tune-sparsity (not installed)"


def search(arguments: list[str]) -> int:
    """Run the command without a subcommand: begin a study. Return the exit code."""
    options = vars(search_parser().parse_args(arguments))
    as_json = options.pop("json", False)
    from tune_sparsity.tuner.config.files import read_config

    config = read_config(options)
    return run(config.resolved(), as_json=as_json, resume=False, named=bool(config.study))


def run(config: Any, *, as_json: bool, resume: bool, named: bool = True) -> int:
    """Prepare and run a study, print its result, and return the exit code.

    Args:
        config: the resolved configuration.
        as_json: whether to print the result as JSON.
        resume: whether to continue an existing study.
        named: whether the user gave the study's name. If False, a study whose default name is taken gets another name.
    """
    from tune_sparsity.tuner.cluster.connection import connection, is_sound
    from tune_sparsity.tuner.tracking.tracker import writer_ahead

    def died() -> NoReturn:
        say(_ray_died(config))
        leave(EXIT_FAILED)

    ahead, out = not resume and is_sound(config), sys.stdout
    with (
        redirect_stdout(sys.stderr if as_json else out),  # because Ray and the user's code may print on stdout
        connection(config, ahead=ahead, died=died, say=say) as ray,
        writer_ahead(config.tracking_uri) if ahead else nullcontext() as writer,
    ):
        from tune_sparsity.tuner.driver.prepare import prepare

        prepared = prepare(config, resume=resume, named=named, share=ray.share)
        with nullcontext(config.study) if named else config.storage.new_name(config.study) as name:
            prepared = replace(prepared, config=config.model_copy(update={"study": name}))
            return _run_with(ray, writer, prepared, out, as_json=as_json, resume=resume)


def _run_with(ray: Any, writer: Any, prepared: Any, out: TextIO, *, as_json: bool, resume: bool) -> int:
    from tune_sparsity.experiments.registry import has_source
    from tune_sparsity.tuner.config.tracking_uri import stray_environment
    from tune_sparsity.tuner.driver.run import DiskFull, run_study
    from tune_sparsity.tuner.reports.text import costly_neurons, few_prunable, trials_text
    from tune_sparsity.tuner.search.byte_spaces import searches_width, too_many_neurons
    from tune_sparsity.tuner.storage.lease import TakenOver
    from tune_sparsity.tuner.study.trial import BINARY

    config = prepared.config
    say(f"{'Resuming' if resume else 'Starting'} {config.study}: {trials_text(config.trials)}, {prepared.goal}")
    if prepared.latency:
        say(prepared.latency)
    if config.storage.synced:
        say(f"The study is stored in {config.storage.address(config.study)}. The command works in {config.folder}")
    if few := few_prunable(prepared.size):
        say(few)
    if (limit := prepared.limit) and config.method != [BINARY] and too_many_neurons(limit):
        searched = any(map(searches_width, prepared.spaces))
        say(costly_neurons(limit.neuron_bytes(), limit.most, searched=searched))
    for warning in prepared.warnings:
        if not few or warning.check != "prunable":  # the line `few` says the same as this warning
            say(f"{warning.check}: {warning.text}")
    if not has_source(config.experiment):
        say("MLflow gets no model of the best network, because tune() got the experiment as an object without a file")
    if stray := stray_environment():
        say(f"Ignoring {', '.join(stray)}: this study creates its own MLflow runs")
    try:
        finished = run_study(prepared, ray, resume=resume, launched=LAUNCHED, writer=writer)
    except DiskFull as error:
        say(f"{config.folder} cannot be written to: {error}. Free disk space, and then run: {_how_to_resume(config)}")
        return EXIT_FAILED
    except TakenOver as error:
        say(f"The study was ended, because this process could not reach the object store for too long: {error}")
        return EXIT_FAILED
    except (KeyboardInterrupt, Exception) as error:
        begun = _begun(config)
        if begun and ray.lost:  # Ray's end is the cause, also if another error or an interrupt followed it
            say(_ray_died(config))
            return EXIT_FAILED
        if begun and isinstance(error, KeyboardInterrupt):
            say(f"Interrupted. To go on: {_how_to_resume(config)}")
            return EXIT_INTERRUPTED
        raise
    say(finished.ended)
    with redirect_stdout(out):
        _report(finished, as_json)
    for failure in finished.failures:
        say(f"{failure[0].upper()}{failure[1:]}")
    if finished.failures:
        say(f"All other results are complete. To try the failed part again: {_how_to_resume(config)}")
    say_missing(finished.problems, config)
    return _exit_code(finished, config)


def _report(finished: Any, as_json: bool) -> None:
    from tune_sparsity.tuner.reports.summary import print_result
    from tune_sparsity.tuner.results.tables import result_document
    from tune_sparsity.tuner.system.files import to_json

    if as_json:
        print(to_json(result_document(finished.outcome)))
    else:
        print_result(finished.outcome)


def _exit_code(finished: Any, config: Any) -> int:
    outcome = finished.outcome
    if finished.interrupted:
        say(f"Interrupted. To go on: {_how_to_resume(config)}")
        return EXIT_INTERRUPTED
    if outcome.records and all(record.state == "failed" for record in outcome.records):
        say(f"Every trial failed. The first failure: {finished.first_failure}")
        return EXIT_FAILED
    if outcome.best is None:
        say(_infeasible(finished, config))
        return EXIT_INFEASIBLE
    return EXIT_DONE


def _infeasible(finished: Any, config: Any) -> str:
    """Return one line that says why no trial meets the goal, and that gives advice."""
    from tune_sparsity.tuner.reports.text import latency_text

    outcome = finished.outcome
    if missed := latency_text(outcome.goal, outcome.latencies, None):
        return f"{missed[0].upper()}{missed[1:]}: give a longer --max-latency, or try more trials"
    advice = f"{_how_to_resume(config)} --time-budget LONGER" if finished.out_of_time else "try more trials or epochs"
    return f"No trial completed with {outcome.goal.condition}: {advice}"


def _begun(config: Any) -> bool:
    """Return whether the study has begun, so that the user can resume it."""
    from tune_sparsity.tuner.study.layout import STUDY_YAML

    return bool((config.folder / STUDY_YAML).exists())


def _ray_died(config: Any) -> str:
    to_go_on = f" To go on: {_how_to_resume(config)}" if _begun(config) else ""
    return f"Ray died, perhaps because memory was short.{to_go_on}"


def _how_to_resume(config: Any) -> str:
    """Return the shell command that resumes the study."""
    from tune_sparsity.tuner.reports.text import command

    return f"{command('tune-sparsity')} resume {config.study} --storage {shlex.quote(str(config.storage))}"
