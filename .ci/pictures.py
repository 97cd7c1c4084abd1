"""The pictures of the README, taken from a campaign that is run for them: `python .ci/pictures.py --budget 30m`.

It runs the first goal from a clone of the last commit, in a terminal of its own (tmux), keeps what the terminal shows while runs are
trained and when it ends, and writes docs/images/{live,verdict,report}.png with chromium. Nothing in a picture is drawn by hand. Needs
tmux, chromium and a monospaced font (`apt-get install tmux chromium fonts-dejavu`), and that no other campaign uses the cores.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
COLUMNS, LINES = 100, 40
FONT = "DejaVu Sans Mono"
REPORT_SIZE = (1040, 900)
MOST_BYTES = 400_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--goal", default="beat LSTM on halfcheetah-vel")
    parser.add_argument("--budget", default="3m")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "autonomous-ssm-metarl"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
        live, verdict = watched(place, ["python", "main.py", "--goal", options.goal, "--budget", options.budget])
        terminal(live, IMAGES / "live.png", Path(folder))
        terminal(verdict, IMAGES / "verdict.png", Path(folder))
        page(next(place.glob("runs/reports/*/report.html")), IMAGES / "report.png")
    return 0


def watched(place: Path, words: list[str]) -> tuple[str, str]:
    """Run a campaign in a terminal: what it showed in the midst of its work, and its verdict, with the colours."""
    session = f"pictures-{time.time_ns()}"
    start = ["tmux", "new-session", "-d", "-s", session, "-x", str(COLUMNS), "-y", str(LINES), "-c", str(place)]
    for name, value in {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}.items():
        start += ["-e", f"{name}={value}"]
    subprocess.run([*start, "sh", "-c", f"{shlex.join([*words, '--llm', 'offline'])}; sleep 3600"], check=True)
    frames: list[str] = []
    try:
        while "rests on" not in plain(frame := captured(session)):
            if refused := re.search(r"^error: .*", plain(frame), re.DOTALL | re.MULTILINE):
                raise SystemExit(refused[0])
            frames += [frame] if is_telling(plain(frame)) else []
            time.sleep(1)
        time.sleep(3)
        end = captured(session).splitlines()
    finally:
        subprocess.run(["tmux", "kill-session", "-t", session], check=False)
    if not frames:
        raise SystemExit("no look showed two runs beside the best of both sides: give it a larger --budget")
    prompt = "$ " + " ".join(f'"{word}"' if " " in word else word for word in words)
    panel = next(place for place, line in enumerate(end) if "verdict" in line)
    return f"{prompt}\n{frames[len(frames) * 2 // 3]}", "\n".join(end[panel:])


def captured(session: str) -> str:
    """The terminal's screen with its colours."""
    done = subprocess.run(["tmux", "capture-pane", "-e", "-p", "-t", session], check=True, capture_output=True)
    return done.stdout.decode().rstrip()


def plain(frame: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", frame)


def is_telling(frame: str) -> bool:
    """Whether a look shows the live view with two runs and the best of both sides."""
    return frame.count(" %") >= 2 and "best challenger" in frame and "best baseline" in frame


def terminal(frame: str, file: Path, folder: Path) -> None:
    """What a terminal showed, as a picture of it."""
    with (folder / "ignored").open("w") as ignored:
        console = Console(record=True, width=COLUMNS, file=ignored, color_system="truecolor")
        console.print(Text.from_ansi(frame), soft_wrap=True)
        svg = console.export_svg(title=" ", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", FONT)
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    source = folder / f"{file.stem}.html"
    source.write_text(f"<!doctype html><style>body {{margin: 0}}</style>{svg}")
    page(source, file, (round(float(found[1])), round(float(found[2]))))


def page(source: Path, file: Path, size: tuple[int, int] = REPORT_SIZE) -> None:
    """The top of a page in a browser that is so wide and so high, in few colours so that the file is small."""
    file.parent.mkdir(exist_ok=True)
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    taken = [f"--screenshot={file}", f"--window-size={size[0]},{size[1]}", "--force-device-scale-factor=1.5"]
    subprocess.run([*browser, *taken, source.resolve().as_uri()], check=True, capture_output=True)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(128).save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{file}: {file.stat().st_size:,} bytes, allowed: {MOST_BYTES:,}")
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    raise SystemExit(main())
