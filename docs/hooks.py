"""What the site takes from the repository: help texts of the commands, and pictures in `results/`."""

import argparse
import os
import re
from importlib import import_module
from pathlib import Path

from mkdocs.structure.files import File

from aeic_lightning.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PICTURES = re.compile(r"\]\(\.\./(results/[\w/.-]+)\)")


def on_files(files, config):
    """Add the pictures that pages show."""
    for page in list(files.documentation_pages()):
        for path in PICTURES.findall(Path(page.abs_src_path).read_text()):
            if files.get_file_from_path(path) is None:
                files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put the help texts in, and link pictures where the site has them."""
    markdown = PICTURES.sub(r"](\1)", markdown)
    if "<!-- commands -->" in markdown:
        os.environ["COLUMNS"] = "100"
        markdown = markdown.replace("<!-- commands -->", "\n".join(map(_help, COMMANDS)))
    return markdown


def _help(name: str) -> str:
    module, text = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"aeic-lightning {name}", description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    import_module(f"aeic_lightning.cli.commands.{module}").add_arguments(parser)
    return f"## {name}\n\n```text\n{parser.format_help()}```\n"
