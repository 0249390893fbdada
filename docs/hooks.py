"""What the site takes from the repository: help texts of the commands, and pictures in `results/`."""

import argparse
import json
import os
import re
import tomllib
from importlib import import_module
from pathlib import Path

from mkdocs.structure.files import File

from aeic_lightning.cli import COMMANDS

ROOT = Path(__file__).parents[1]
RESULTS = re.compile(r"results/[\w/]+/README\.md")
SHOWN = {"crops.png": "![Crops beside other codecs](crops.png)", "index.html": "[The interactive page](index.html)"}
"""Files beside a page of results, and how the site shows them below its title."""
PICTURES = re.compile(r"\]\(\.\./(results/[\w/.-]+)\)")


URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]


def on_config(config):
    """The addresses of the site and of the repository."""
    config.site_url, config.repo_url = URLS["Documentation"], URLS["Repository"]
    config.repo_name = "/".join(URLS["Repository"].split("/")[-2:])
    return config


def on_files(files, config):
    """Add the pages of results that the menu names, what they link, and the pictures that pages show."""
    for path in RESULTS.findall(json.dumps(config.nav)):
        # Beside its folder: there `README.md` would be index.html, which a report may be.
        where = {"dest_uri": f"{Path(path).parent}.html"}
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls, **where))
        for name in SHOWN:
            shown = f"{Path(path).parent}/{name}"
            if (ROOT / shown).is_file() and files.get_file_from_path(shown) is None:
                files.append(File(shown, str(ROOT), config.site_dir, config.use_directory_urls))
    for page in list(files.documentation_pages()):
        for path in PICTURES.findall(Path(page.abs_src_path).read_text()):
            if files.get_file_from_path(path) is None:
                files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put the help texts in, and link pictures where the site has them."""
    markdown = PICTURES.sub(r"](\1)", markdown).replace("https://github.com/OWNER/aeic_lightning", URLS["Repository"])
    if RESULTS.fullmatch(page.file.src_uri):
        folder = Path(page.file.src_uri).parent
        shown = [text for name, text in SHOWN.items() if files.get_file_from_path(f"{folder}/{name}")]
        title, _, rest = markdown.partition("\n")
        markdown = "\n\n".join([title, *shown, rest])
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
