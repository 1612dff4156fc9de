"""RESULTS.md: one section a benchmark, replaced by the command that measures it."""

import os
import pathlib
import platform
import re

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")


def replace_section(title: str, body: str) -> None:
    """Puts `body` under "## title", in place of what stood there, or at the end."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    sections = re.split(r"^(?=## )", text, flags=re.M)
    section = f"## {title}\n\n{body.strip()}\n\n"
    for i, old in enumerate(sections):
        if old.startswith(f"## {title}\n"):
            sections[i] = section
            break
    else:
        sections[-1] = sections[-1].rstrip() + "\n\n"
        sections.append(section)
    RESULTS.write_text("".join(sections).rstrip() + "\n")


def finish(title: str, lines: list[str], write: bool) -> None:
    """Prints the lines of a section, and puts them into RESULTS.md if asked to."""
    text = "\n".join(lines)
    print(text)
    if write:
        replace_section(title, text)


def machine() -> str:
    """The machine, in words."""
    return f"{os.cpu_count()} CPU cores ({cpu()}), Python {platform.python_version()}"


def cpu() -> str:
    """The CPU's name and the widest instructions for products it has."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return model
    text = cpuinfo.read_text()
    found = re.search(r"model name\s*: (.*)", text)
    model = re.sub(r"\([RrTtMm]+\)", "", found.group(1) if found else model)
    flags = set(text.split())
    widest = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512"}
    known = [name for flag, name in widest.items() if flag in flags]
    known += ["AVX2"] * ("avx2" in flags)
    return " ".join([*model.split(), *known[:1]])
