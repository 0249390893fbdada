"""Tables as they are printed, without what aligns their columns."""


def plain(text: str) -> str:
    """Each line of a Markdown table with one space around its cells, and `---` between head and rows."""
    return "\n".join(_plain(line) if line.startswith("|") else line for line in text.splitlines())


def _plain(line: str) -> str:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if all(cell and not cell.strip("-:") for cell in cells):
        return "|---" * len(cells) + "|"
    return "| " + " | ".join(cells) + " |"
