"""The command line: parse, call one function, draw a view. Heavy imports stay inside the commands."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from cyclopts import App, CycloptsError

from cli import STOPPED, attach, campaigns, former, keeping, reading, serving, steering, training
from cli.options import LedgerOptions
from cli.terminal import drop_unread, emit, make_console, prepare_streams
from core.errors import InputError, bad_value
from core.plugins import OPTION, plugins_from
from core.words.commands import Invocation, add_to_commands, command, printed_as

HELP = {"--help", "-h", "--version"}
NOBODY_READS = 141  # as a shell says of a program that ended by SIGPIPE
DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLACE_REFUSES = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
INSTALLED = "ssm-metarl"  # the command of pyproject.toml's [project.scripts]
IS_INSTALLED = Path(sys.argv[0]).stem == INSTALLED
Shell = Literal["bash", "zsh", "fish"]

app = App(
    name=INSTALLED if IS_INSTALLED else "main.py",
    help="Ask a research question about sequence models in meta-reinforcement learning; a crew runs the experiments, code judges.",
    help_format="plaintext",  # Markdown would cost a third of the time until --help is there
    help_epilogue="With any command: --plugin FILE|MODULE (may be repeated) takes in models, tasks, learners, agents and benches from there.",
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # it is `main`'s to answer
)
app.default(campaigns.research)
for _command in (
    *(campaigns.resume, campaigns.extend, campaigns.stop, attach.attach),
    *(steering.pause, steering.instruct, steering.approve, steering.ask),
    *(
        reading.runs,
        reading.campaigns,
        reading.strategies,
        reading.transcript,
        reading.show,
        reading.status,
        reading.compare,
        reading.diff,
        reading.sql,
    ),
    *(reading.report, reading.plot, reading.watch, reading.export, serving.serve),
    *(keeping.note, keeping.tag, keeping.archive, keeping.doctor, keeping.gc),
    serving.mcp,
    serving.push,
    *(training.rerun, training.tune, training.grid, training.evaluate, training.bench),
):
    app.command(_command)
app.command(training.run_spec, name="run")
app.command(reading.list_names, name="list")
former.add_former(app)


@app.command
def completion(*, shell: Shell | None = None) -> None:
    """Print a shell completion script; `source <(python main.py completion --shell bash)` uses it at once.

    Parameters
    ----------
    shell
        Which shell (default: the one of $SHELL).
    """
    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    for known in get_args(Shell):
        if name == known:
            script = app.generate_completion(prog_name=INSTALLED, shell=known)
            emit(script.removeprefix(f"#compdef {INSTALLED}\n").rstrip() + "\n" + TIES[known])
            return
    raise bad_value("--shell", name, ", ".join(get_args(Shell)))


TIES: dict[Shell, str] = {
    "bash": """
_python_main_py() {
  [[ "${COMP_WORDS[1]##*/}" == main.py ]] && (( COMP_CWORD > 1 )) || return
  COMP_WORDS=("${COMP_WORDS[@]:1}")
  COMP_CWORD=$((COMP_CWORD - 1))
  _ssm_metarl
}
complete -o bashdefault -o default -F _python_main_py python python3
""",
    "zsh": """
_python_main_py() {
  if (( CURRENT > 2 )) && [[ ${words[2]:t} == main.py ]]; then
    shift words
    (( CURRENT-- ))
    _cyclopts_ssm-metarl
  else
    _files
  fi
}
if ! (( $+functions[compdef] )); then
  autoload -Uz compinit
  compinit
fi
compdef _cyclopts_ssm-metarl ssm-metarl
compdef _python_main_py python python3
""",
    "fish": r"""
function __main_py_rest
    set -l words (commandline -opc)
    set -l rest (string join -- ' ' (string escape -- $words[3..-1]))
    set -l typed (commandline -ct)
    complete -C "ssm-metarl $rest $typed"
end
function __main_py_typed
    set -l words (commandline -opc)
    test (count $words) -ge 2; and string match -q -r -- '(^|/)main\.py$' $words[2]
end
complete -c python -n __main_py_typed -f -a '(__main_py_rest)'
complete -c python3 -n __main_py_typed -f -a '(__main_py_rest)'
""",
}
"""What makes `python main.py` complete as the installed command does. Shells complete by the first word, which here is
`python`, so a small function passes the words after `main.py` on; any other use of `python` completes file names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed or drifted, 2 bad input, 130 stopped, 141 nobody reads the output."""
    prepare_streams()
    with printed_as(Invocation(_program())):
        return _main(sys.argv[1:] if arguments is None else arguments)


def _program() -> tuple[str, ...]:
    """How this program was called: as the installed command, or as a file by some Python."""
    called = sys.argv[0]
    if IS_INSTALLED:
        found = shutil.which(INSTALLED)
        return (INSTALLED if found and Path(found).samefile(called) else called,)
    return (sys.orig_argv[0], called) if Path(called).name == "main.py" else Invocation.program


def _main(arguments: Sequence[str]) -> int:
    """The exit code, whatever a pipe or a disk refuses."""
    try:
        code = _answered(arguments)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        return code
    except BrokenPipeError:
        if not drop_unread():
            raise
        return NOBODY_READS
    except OSError as error:
        if error.errno not in (*DISK_REFUSES, *PLACE_REFUSES):
            raise
        drop_unread()
        file = f" {error.filename}" if error.filename else ""
        if error.errno in PLACE_REFUSES:
            _say_error(f"cannot use{file} ({error.strerror}): choose another place, such as another --data-dir")
            return 2
        _say_error(
            f"cannot write{file} ({error.strerror}): free some space or choose another --data-dir; "
            f"what is in the ledger is kept, go on with: {command('resume')}"
        )
        return 1


def _answered(arguments: Sequence[str]) -> int:
    """The exit code of one command, whose mistakes in what was given are said in words."""
    try:
        words, named = plugins_from(former.with_former_first(arguments))
        add_to_commands(plugins=tuple(word for plugin in named for word in (OPTION, plugin.source)))
        console = make_console() if HELP.intersection(words) else None  # else rich need not be imported
        called, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False, console=console)
        for options in bound.arguments.values():
            if isinstance(options, LedgerOptions):
                options.name_in_commands()
        return called(*bound.args, **bound.kwargs) or 0
    except CycloptsError as error:
        _say_error(f"{error}\nSee: {command('--help')}")
        return 2
    except InputError as error:
        _say_error(str(error))
        return 2
    except KeyboardInterrupt:
        return STOPPED
    except SystemExit as error:  # of argparse in a bench, which has said what there is to say
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except OSError:
        raise  # for `_main`, which knows what a disk and a pipe may refuse
    except Exception as error:
        from experiments.runs.runner import Paused  # not above: it loads the learners, which most commands do without

        if isinstance(error, Paused):
            return STOPPED
        raise


def _say_error(words: str) -> None:
    with suppress(OSError):  # of standard error: then nothing can be said
        emit(f"error: {words}", to_error=True)
