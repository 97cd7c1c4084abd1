"""Shell completion for `python main.py`: the script that cyclopts makes for a command name, tied to its real spelling.

Shells complete by the first word, which here is `python`, so a small function per shell passes the words after `main.py`
on. Any other use of `python` completes as before, as file names.
"""

from __future__ import annotations

from typing import Literal

Shell = Literal["bash", "zsh", "fish"]
SHELLS: tuple[Shell, ...] = ("bash", "zsh", "fish")
NAME = "main_py"  # cyclopts takes no dot in a name

TIED: dict[Shell, str] = {
    "bash": """
_python_main_py() {
  [[ "${COMP_WORDS[1]##*/}" == main.py ]] && (( COMP_CWORD > 1 )) || return
  COMP_WORDS=("${COMP_WORDS[@]:1}")
  COMP_CWORD=$((COMP_CWORD - 1))
  _main_py
}
complete -o bashdefault -o default -F _python_main_py python python3
""",
    "zsh": """
_python_main_py() {
  if (( CURRENT > 2 )) && [[ ${words[2]:t} == main.py ]]; then
    shift words
    (( CURRENT-- ))
    _cyclopts_main_py
  else
    _files
  fi
}
if ! (( $+functions[compdef] )); then
  autoload -Uz compinit
  compinit
fi
compdef _python_main_py python python3
""",
    "fish": """
function __main_py_rest
    set -l words (commandline -opc)
    set -l rest (string join -- ' ' (string escape -- $words[3..-1]))
    set -l typed (commandline -ct)
    complete -C "main_py $rest $typed"
end
function __main_py_typed
    set -l words (commandline -opc)
    test (count $words) -ge 2; and string match -q -r -- '(^|/)main\\\\.py$' $words[2]
end
complete -c python -n __main_py_typed -f -a '(__main_py_rest)'
complete -c python3 -n __main_py_typed -f -a '(__main_py_rest)'
""".replace("\\\\", "\\"),
}


def tie(script: str, shell: Shell) -> str:
    """The script of cyclopts for `NAME` with what makes `python main.py` use it."""
    if shell == "zsh":  # its last lines would complete at once, as a file of $fpath does
        script = script.removeprefix(f"#compdef {NAME}\n")
    return script.rstrip() + "\n" + TIED[shell]
