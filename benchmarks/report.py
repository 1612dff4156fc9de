"""Writes RESULTS.md: one section per benchmark, replaced by the benchmark's command."""

import os
import pathlib
import platform
import re

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")


def replace_section(title: str, body: str) -> None:
    """Replaces the section "## title" by `body`, or appends it."""
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
    """Prints the lines of a section; if `write`, puts them into RESULTS.md."""
    text = "\n".join(lines)
    print(text)
    if write:
        replace_section(title, text)


def machine() -> str:
    """Description of the machine."""
    return f"{os.cpu_count()} CPU cores ({cpu()}), Python {platform.python_version()}"


def cpu() -> str:
    """The CPU's name and its widest instructions for products."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return model
    text = cpuinfo.read_text()
    match = re.search(r"model name\s*: (.*)", text)
    model = re.sub(r"\([RrTtMm]+\)", "", match.group(1) if match else model)
    flags = set(text.split())
    widest = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512"}
    instructions = [name for flag, name in widest.items() if flag in flags]
    instructions += ["AVX2"] * ("avx2" in flags)
    return " ".join([*model.split(), *instructions[:1]])
