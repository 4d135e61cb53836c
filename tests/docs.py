"""Keep what is made from the code equal to it: `python -m tests.docs` rewrites README's table and deploy/settings."""

from pathlib import Path

from common.error_codes import CATALOGUE
from tests import settings_example

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- error codes: made by `python -m tests.docs`, checked by the test suite -->"
END = "<!-- end of error codes -->"


def error_table() -> str:
    """Return the table of error codes as Markdown, sorted by phase and code."""
    rows = sorted(CATALOGUE.items(), key=lambda item: (item[1].phase, item[0]))
    lines = ["| code | phase | cause | cure |", "|---|---|---|---|"]
    lines += [f"| `{code}` | {entry.phase} | {entry.cause} | {entry.cure} |" for code, entry in rows]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Return the README's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{error_table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    for name in settings_example.FILES:
        (settings_example.FOLDER / name).write_text(settings_example.example(name), encoding="utf-8")
